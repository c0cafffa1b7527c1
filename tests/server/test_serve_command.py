"""`kandinsky5 serve`: what is said before anything is loaded."""

from pathlib import Path

import pytest

import kandinsky5.cli.serve as command
from kandinsky5.cli.app import ExitCode, run


def test_without_the_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "EXTRA_MODULES", frozenset({"starlette", "not_installed_anywhere"}))
    assert run(["serve"]) == ExitCode.REQUEST
    said = capsys.readouterr().err
    assert "needs not_installed_anywhere" in said and "pip install 'kandinsky5[serve]'" in said


def test_the_extra_is_what_the_project_file_says() -> None:
    """Every module that is asked for belongs to a distribution of the extra, and none is left out."""
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    extra = text.split("serve = [")[1].split("]")[0]
    names = {line.strip().strip('",').partition(">")[0].replace("-", "_") for line in extra.splitlines()} - {
        ""
    }
    assert names == command.EXTRA_MODULES


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "no such model"], "no such model"),
        (["--api-keys", "/no/such/file"], "cannot be read"),
        (["--max-n", "11"], "max-n"),
        (["--lora", "a.safetensors:0.5"], "each request gives its own weight; say 'a.safetensors'"),
        (["--lora", "a.safetensors", "--lora", "b/a.safetensors"], "twice"),
        (["--port", "70000"], "port"),
    ],
)
def test_options_that_will_not_do(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["serve", *arguments]) == ExitCode.REQUEST
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "keys", "names"),
    [
        ([], "", command.LOOPBACK_NAMES),
        ([], "a-key-of-sixteen-letters", frozenset()),
        (["--host", "0.0.0.0"], "", frozenset()),
    ],
)
def test_which_names_a_server_answers_to(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], keys: str, names: frozenset[str]
) -> None:
    """One on loopback without keys is safe from pages by its names; one with keys can be behind a proxy there."""
    settings = []
    monkeypatch.setattr(
        "kandinsky5.server.running.serve", lambda _, given, *__, **___: settings.append(given)
    )
    monkeypatch.setattr(command, "_log_to_standard_error", lambda _: None)
    monkeypatch.setenv(command.KEYS_VARIABLE, keys)
    assert run(["serve", *arguments]) == ExitCode.OK
    assert [one.hosts for one in settings] == [names]
