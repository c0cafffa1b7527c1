from pathlib import Path

import pytest

import kandinsky5
from kandinsky5 import variants
from kandinsky5.errors import RequestError
from kandinsky5.variants import EMBEDDED, VARIANTS, check_task, close_hub_ids, resolve_model

SFT = "kandinskylab/Kandinsky-5.0-T2I-Lite-sft-Diffusers"


def test_the_published_checkpoints_and_the_embedded_one_are_known() -> None:
    assert {variant.hub_id for variant in VARIANTS} == {
        None,
        SFT,
        "kandinskylab/Kandinsky-5.0-T2I-Lite-pretrain-Diffusers",
        "kandinskylab/Kandinsky-5.0-I2I-Lite-sft-Diffusers",
        "kandinskylab/Kandinsky-5.0-I2I-Lite-pretrain-Diffusers",
    }
    for variant in VARIANTS:
        if variant.hub_id is not None:
            assert (variant.task == "editing") == ("I2I" in variant.hub_id)
            assert (variant.size, variant.steps, variant.guidance, variant.shift) == (
                (1024, 1024),
                50,
                3.5,
                3.0,
            )


def test_no_two_rows_answer_to_one_name() -> None:
    names = [name for variant in VARIANTS for name in (variant.name, *variant.aliases)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("text", ["t2i-lite-sft", "t2i", "T2I-Lite", SFT])
def test_a_published_model_goes_by_name_alias_and_id(text: str) -> None:
    source = resolve_model(text)
    assert (source.hub_id, source.folder, source.location, source.name) == (SFT, None, SFT, SFT)
    assert source.variant is not None and source.variant.hub_id == SFT


def test_the_embedded_model_is_a_folder_of_the_package() -> None:
    source = resolve_model(EMBEDDED)
    assert source.folder == Path(kandinsky5.__file__).parent / "demo" / "weights"
    assert source.name == EMBEDDED


@pytest.mark.parametrize(
    ("config", "task"),
    [
        ('{"visual_cond": true}', "editing"),
        ('{"visual_cond": false}', "text-to-image"),
        ("{}", "text-to-image"),
        ('{"visual_cond', "text-to-image"),
        (None, "text-to-image"),
    ],
)
def test_the_embedded_models_task_is_what_its_weights_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str | None, task: str
) -> None:
    """Also where they are broken: loading says how, whatever is asked of them."""
    monkeypatch.setattr(variants, "embedded_folder", lambda: tmp_path)
    (tmp_path / "transformer").mkdir()
    if config is not None:
        (tmp_path / "transformer" / "config.json").write_text(config)
    source = resolve_model(EMBEDDED)
    assert source.variant is not None and source.variant.task == task
    if task == "editing":
        check_task(source, "editing")
    else:
        with pytest.raises(RequestError, match="embedded makes pictures from text only"):
            check_task(source, "editing")


def test_a_folder_comes_before_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_model("mine/model").hub_id == "mine/model"
    (tmp_path / "mine" / "model").mkdir(parents=True)
    assert resolve_model("mine/model").folder == Path("mine/model")
    assert resolve_model(str(tmp_path)).name == str(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "nothing", "./missing", "../up/there", "/no/such/folder", "a/b/c", "-a/b", "a/b-"]
)
def test_anything_else_is_refused_with_what_would_work(text: str) -> None:
    with pytest.raises(RequestError, match=r"embedded, t2i-lite-sft.*existing folder.*hub id"):
        resolve_model(text)


def test_mistyped_names_get_close_matches() -> None:
    with pytest.raises(RequestError, match="Did you mean t2i-lite-sft"):
        resolve_model("t2i-lite-stf")
    with pytest.raises(RequestError) as caught:
        resolve_model("zzz")
    assert "Did you mean" not in str(caught.value)
    assert close_hub_ids("kandinskylab/Kandinsky-5.0-I2I-Lite-sft")[0] == VARIANTS[3].hub_id
    assert close_hub_ids("someone/else") == [] == close_hub_ids(str(VARIANTS[1].hub_id))
