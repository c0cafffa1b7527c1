"""The settings tree and its TOML file: nothing is ignored, everything is explained, and the names are frozen."""

import dataclasses
import tomllib
from pathlib import Path

import pytest

from kandinsky5.errors import RequestError
from kandinsky5.train.settings import DrawnSettings, TrainingSettings
from kandinsky5.train.settings_file import as_toml, initial_file, read_settings

KEYS = {
    "": ["output"],
    "model": ["name", "task", "base", "device"],
    "data": [
        "sizes",
        "fit",
        "upscale",
        "max_tokens",
        "max_edit_tokens",
        "bad_limit",
        "validation_share",
        "cache",
    ],
    "data.sources": ["path", "kind", "repeats", "weight", "split", "picture", "text", "source"],
    "objective": ["times", "shift", "unconditional", "editing_share"],
    "tuning": ["kind", "rank", "alpha", "targets", "dropout"],
    "optimiser": ["name", "rate", "betas", "weight_decay", "warmup", "decay_share", "clip"],
    "run": [
        *(
            "steps",
            "batch",
            "micro_batch",
            "seed",
            "ema",
            "checkpointing",
            "compile",
            "graphs",
            "save_every",
            "keep",
        ),
        *("replicas", "max_seconds", "stop_at"),
    ],
    "watch": [
        *("log_every", "prompts", "pictures_every", "steps", "guidance", "validation_every", "tensorboard"),
        *("wandb", "trigger"),
    ],
}


DRAWN = '[tuning]\nkind = "full"\n[[data.sources]]\nkind = "drawn"\n'


def read(tmp_path: Path, text: str, *changes: str) -> TrainingSettings:
    file = tmp_path / "config.toml"
    file.write_text(text)
    return read_settings(file, changes)


def test_the_initial_file_is_the_defaults_with_a_sentence_each(tmp_path: Path) -> None:
    text = initial_file()
    assert read(tmp_path, text) == TrainingSettings()
    tree = tomllib.loads(text)
    found = {"": [key for key, value in tree.items() if not isinstance(value, dict)]}
    for name, table in tree.items():
        if isinstance(table, dict):
            found[name] = [
                key
                for key, value in table.items()
                if not (
                    isinstance(value, list)
                    and isinstance(value[0:1], list)
                    and value
                    and isinstance(value[0], dict)
                )
            ]
    found["data.sources"] = list(tree["data"]["sources"][0])
    assert found == KEYS
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if " = " in line and not line.startswith(("#", " ")):
            assert lines[number - 1].startswith("# "), line


def test_settings_survive_their_own_file(tmp_path: Path) -> None:
    settings = read(
        tmp_path,
        '[[data.sources]]\npath = "a"\nrepeats = 3\n[[data.sources]]\npath = "b"\nkind = "datasets"\n',
        'tuning.targets=["to_query"]',
        "optimiser.betas=[0.5, 0.75]",
        'watch.trigger=a "quoted" word',
        "watch.prompts=['красный круг \U0001f642']",
        "run.ema=0.9999",
    )
    assert read(tmp_path, as_toml(settings)) == settings and "красный круг" in as_toml(settings)
    assert [source.path for source in settings.data.sources] == ["a", "b"]
    assert settings.watch.trigger == 'a "quoted" word'


def test_a_source_that_is_drawn_has_settings_of_its_own(tmp_path: Path) -> None:
    settings = read(tmp_path, DRAWN, "data.sources.draws=2")
    assert settings.data.drawn == DrawnSettings(draws=2) and settings.data.stored == ()
    assert read(tmp_path, as_toml(settings)) == settings
    (source,) = settings.recipe()["data"]["sources"]
    left_out = {field.name for field in dataclasses.fields(DrawnSettings)} - source.keys()
    assert left_out == {"kind", "begin_from", "reading", "workers", "compiled"}, (
        "files are told apart by what they hold"
    )
    assert "name" not in settings.recipe()["model"]


def test_changes_of_the_command_line(tmp_path: Path) -> None:
    settings = read(
        tmp_path, "", "run.steps=7", "model.name=embedded", "optimiser.rate=1", "run.compile=true"
    )
    assert settings.run.steps == 7 and settings.model.name == "embedded"
    assert read(tmp_path, "", "data.sources.path=elsewhere").data.sources[0].path == "elsewhere"
    assert settings.optimiser.rate == 1.0 and settings.run.compile is True


@pytest.mark.parametrize(
    ("text", "change", "message"),
    [
        ("[run]\nstep = 3", "run.seed=1", r"run\.step is no setting; did you mean steps\?"),
        ("[runs]", "run.seed=1", r"runs is no setting; did you mean run\?"),
        ("cache = 'a'", "run.seed=1", r"cache is no setting; did you mean data\.cache\?"),
        ("", "run.name=adamw", r"did you mean model\.name or optimiser\.name\?"),
        ("", "run.steps=many", r"run\.steps must be a whole number, not 'many'"),
        ("", "run.steps=true", r"run\.steps must be a whole number"),
        ("", "run.steps", "not key=value"),
        ("", "run=3", "run must be a table of settings"),
        ("", "tuning.kind=lorra", "'lorra' is not one of lora, dora, lokr, full"),
        ("", "tuning.targets=to_query", r"tuning\.targets must be a list"),
        ("", "optimiser.betas=[0.9]", "list of 2"),
        ("", "optimiser.name=sgd", "'sgd' is not one of adamw"),
        ("", "objective.times=cosine", "'cosine' is not one of logit-normal"),
        ("", "objective.unconditional=2", "must be from 0 to 1"),
        ("", 'data.sizes=["1000x1000"]', "not a multiple of 16"),
        ("", "run.batch=0", r"run\.batch = 0 must be from 1 up"),
        ("", "model.base=int4", r"'int4' is not one of.*nf4"),
        ('[model]\nbase = "nf4"', "tuning.kind=lokr", 'beside model.base = "nf4"'),
        ("", "tuning.alpha=0", r"tuning\.alpha = 0 must be above 0"),
        ("", "optimiser.rate=0", r"optimiser\.rate = 0 must be above 0"),
        ("", "optimiser.clip=inf", r"optimiser\.clip = inf must be above 0, and finite"),
        ("", "optimiser.betas=[0.9, 1.5]", r"optimiser\.betas = 1\.5 must be from 0 to 0\.999999"),
        ("", "optimiser.weight_decay=-1", r"optimiser\.weight_decay = -1\.0 must be from 0 up"),
        ("", "optimiser.weight_decay=nan", "must be from 0 up"),
        ("", "optimiser.warmup=-1", r"optimiser\.warmup = -1 must be from 0 up"),
        ("", "run.seed=-1", r"run\.seed = -1 must be from 0 to 4294967295"),
        ("", "run.max_seconds=inf", "must be from 0 up"),
        ("", "watch.guidance=nan", r"watch\.guidance = nan must be from 0 up"),
        ("[tuning]\ndropout = 0.1", "tuning.kind=lokr", "a LoKr has no inputs of its own to drop"),
        ("", "run.replicas=2", "every process holds an adapter whole"),
        ("", "data.sources.weight=0", "nothing to learn from"),
        ("", "optimiser.name=muon", r'inside blocks, which an adapter.*tuning\.kind = "full"'),
        (DRAWN, "data.sources.weight=2", r"data\.sources\.weight is no setting; did you mean map_weight"),
        (DRAWN, "data.sources.kind=drawing", "'drawing' is not one of folder, .*, drawn"),
        (
            DRAWN + 'architecture = "toy"\n',
            "data.sources.kind=drawing",
            r"sources\.kind = 'drawing' is not one of",
        ),
        (DRAWN, "data.sources.architecture=large", "not one of embedded, toy"),
        (DRAWN, 'data.sources.compiled=["all"]', "not one of text, autoencoder, renderer"),
        (DRAWN, "tuning.kind=lora", 'teaches every weight: set tuning.kind = "full"'),
        (DRAWN, 'watch.prompts=["a star"]', r"watch\.prompts: of no use to a source of kind 'drawn'"),
        (DRAWN, "data.validation_share=0.1", r"data\.validation_share: of no use"),
        (DRAWN + '[[data.sources]]\npath = "a"', "run.seed=1", "never mixed with others"),
        ("[[data.sources]]\n[[data.sources]]\n", "data.sources.path=x", "say it in the file"),
        ('[model]\nbase = "int8"', "tuning.kind=full", "packed and cannot learn"),
        ("data.sources.a = 1", "run.seed=1", "must be a list"),
        ("a = = 1", "run.seed=1", "cannot be read as TOML"),
    ],
)
def test_mistakes_are_named(text: str, change: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=message):
        read(tmp_path, text, change)


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("[run]\nsteps = 7", encoding="utf-8-sig")
    assert read_settings(tmp_path / "a.toml").run.steps == 7


def test_a_missing_file_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="kandinsky5 train init"):
        read_settings(tmp_path / "none.toml")


def test_what_decides_the_result_is_in_the_recipe() -> None:
    """A new setting must be sorted: it changes the result, or it is named here."""
    recipe = TrainingSettings().recipe()
    left_out = {
        f"{part}.{key}"
        for part, keys in KEYS.items()
        for key in keys
        if part in ("model", "data", "objective", "tuning", "optimiser", "run") and key not in recipe[part]
    }
    assert left_out == {
        *(
            "model.device",
            "data.cache",
            "data.bad_limit",
            "run.checkpointing",
            "run.compile",
            "run.graphs",
            "run.save_every",
            "run.keep",
        ),
        *("run.replicas", "run.max_seconds", "run.stop_at"),
    }
    assert "watch" not in recipe and "output" not in recipe


def test_every_class_of_the_tree_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainingSettings().run.steps = 3  # type: ignore[misc]
