# Chores, for a checkout whose .venv was made by the README's test command. `make` alone lists them.

bin := .venv/bin
TORCH := 2.13.0

.PHONY: help tidy check test test-slow ci constraints

help:
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile

tidy: ## format the code and apply safe fixes
	$(bin)/ruff format
	$(bin)/ruff check --fix

check: ## what CI checks before the tests
	$(bin)/ruff format --check
	$(bin)/ruff check
	$(bin)/mypy

test: ## the suite, in two processes; some="-k geometry" runs a part
	$(bin)/python -m pytest -q -n 2 $(some)

test-slow: ## the tests that take minutes
	$(bin)/python -m pytest -q -m slow $(some)

ci: ## everything CI does, in a fresh environment
	.ci/run

constraints: ## pin the newest packages that pyproject.toml allows beside TORCH=2.13.0; test before committing
	python3 -m venv --clear .venv-constraints
	.venv-constraints/bin/pip install -q -e '.[browser,dev]' torch==$(TORCH)
	.venv-constraints/bin/pip freeze --exclude-editable | sed 's/+cpu$$//' | grep -vE '^(cuda|nvidia|triton)' > constraints.txt
	rm -r .venv-constraints
