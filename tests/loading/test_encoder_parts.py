"""What a task does not use of Qwen2.5-VL stays in the files, and nobody notices but the memory."""

import copy
import json
import pickle
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload
from diffusers import DiffusionPipeline
from diffusers.hooks import apply_group_offloading
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.utils import is_torchvision_available

from kandinsky5.errors import CheckpointError, RequestError
from kandinsky5.pipelines import Kandinsky5I2IPipeline, Kandinsky5T2IPipeline, bring_in
from kandinsky5.pipelines.encoder_parts import PartOnDisk, leaving_out, left_out
from tests.loading.conftest import same_state, shards_of
from tests.loading.test_saved_folders import new_name, old_name
from tests.pipelines.conftest import SHORT

MODELS = ("transformer", "vae", "text_encoder", "text_encoder_2")
WHOLE = {"text_encoder_parts": ["vision", "head"]}
BROUGHT = {} if is_torchvision_available() else {"tokenizer": None}
"""diffusers builds the whole processor, which needs torchvision."""


class SeeingPipeline(Kandinsky5T2IPipeline):
    """A task that uses the vision tower."""

    text_encoder_parts = ("vision",)


def restyle(folder: Path, name: Callable[[str], str]) -> None:
    """Every tensor of the encoder under another spelling, shards and index alike."""
    index = folder / "text_encoder" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    for file in (folder / "text_encoder").glob("*.safetensors"):
        renamed = {name(old_name(key)): tensor for key, tensor in load_file(file).items()}
        save_file(renamed, file, metadata={"format": "pt"})
    content["weight_map"] = {name(old_name(key)): shard for key, shard in content["weight_map"].items()}
    index.write_text(json.dumps(content))


def draw(pipe: Kandinsky5T2IPipeline) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        SHORT, num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="pt"
    ).image


# -- Leaving out ---------------------------------------------------------------------------------------------


def test_text_to_image_leaves_out_what_it_does_not_use(untied):
    pipe, whole = (Kandinsky5T2IPipeline.from_pretrained(untied, **given) for given in ({}, WHOLE))
    encoder = pipe.text_encoder
    assert type(encoder) is Qwen2_5_VLForConditionalGeneration
    assert left_out(encoder) == ("vision", "head") and left_out(whole.text_encoder) == ()
    names = [name for name, _ in [*encoder.named_parameters(), *encoder.named_buffers()]]
    assert not any("visual" in name or "lm_head" in name for name in names)
    assert not any(tensor.is_meta for tensor in [*encoder.parameters(), *encoder.buffers()])
    language = sum(p.numel() for p in whole.text_encoder.model.language_model.parameters())
    assert encoder.num_parameters() == language < 0.8 * whole.text_encoder.num_parameters()
    assert encoder.dtype == torch.float32 and encoder.device == torch.device("cpu")
    same_state(encoder, whole.text_encoder)
    assert torch.equal(draw(pipe), draw(whole))


def test_a_tied_projection_takes_nothing_and_stays(saved_folder):
    encoder = Kandinsky5T2IPipeline.from_pretrained(saved_folder).text_encoder
    assert left_out(encoder) == ("vision",)
    assert encoder.lm_head.weight is encoder.model.language_model.embed_tokens.weight


@pytest.mark.parametrize("style", [old_name, new_name], ids=["old", "new"])
def test_zero_missing_keys(untied, untied_source, style):
    """`model.layers`, `visual`; and `model.language_model`, `model.visual`: both leave the same out."""
    restyle(untied, style)
    with leaving_out(["vision", "head"]):
        encoder, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            untied / "text_encoder", output_loading_info=True
        )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert left_out(encoder) == ("vision", "head")
    loaded = Kandinsky5T2IPipeline.from_pretrained(untied)
    original = Qwen2_5_VLForConditionalGeneration.from_pretrained(untied_source / "text_encoder")
    same_state(loaded.text_encoder, original)
    bring_in(loaded.text_encoder)
    same_state(loaded.text_encoder, original)


def test_other_threads_build_whole_models(untied):
    config = Qwen2_5_VLForConditionalGeneration.config_class.from_pretrained(untied / "text_encoder")
    built = []
    with leaving_out(["vision"]):
        thread = threading.Thread(target=lambda: built.append(Qwen2_5_VLForConditionalGeneration(config)))
        thread.start()
        thread.join()
        built.append(Qwen2_5_VLForConditionalGeneration(config))
    built.append(Qwen2_5_VLForConditionalGeneration(config))
    assert [left_out(model) for model in built] == [(), ("vision",), ()]


@pytest.mark.parametrize("parts", ["vision", ["sight"], [1]])
def test_parts_that_do_not_exist(untied, parts):
    with pytest.raises(RequestError, match="'vision', 'head'"):
        Kandinsky5T2IPipeline.from_pretrained(untied, text_encoder_parts=parts)


def test_a_library_that_loads_something_else_is_found_out(untied, monkeypatch):
    """As when a future version calls a tensor by a new name and leaves random numbers in its place."""
    real = Qwen2_5_VLForConditionalGeneration.from_pretrained.__func__

    def forgetful(cls, *args, **kwargs):
        encoder = real(cls, *args, **kwargs)
        torch.nn.init.normal_(encoder.model.language_model.layers[1].mlp.up_proj.weight)
        return encoder

    monkeypatch.setattr(Qwen2_5_VLForConditionalGeneration, "from_pretrained", classmethod(forgetful))
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj\.weight.*did not arrive"):
        Kandinsky5T2IPipeline.from_pretrained(untied)


def test_a_place_holder_has_nothing_to_move():
    place = PartOnDisk("head")
    assert not list(place.parameters()) and not list(place.buffers()) and not place.state_dict()


# -- A broken tensor in what is left out ---------------------------------------------------------------------


def spoil(folder: Path, prefix: str, change: Callable[[dict, str], object]) -> str:
    file = shards_of(folder, prefix)[-1]
    tensors = load_file(file)
    name = sorted(key for key in tensors if prefix in key)[0]
    change(tensors, name)
    save_file(tensors, file, metadata={"format": "pt"})
    return name


@pytest.mark.parametrize("prefix", ["visual", "lm_head"])
@pytest.mark.parametrize(
    "change", [lambda t, n: t.update({n: t[n][:1].clone()}), lambda t, n: t.pop(n)], ids=["shape", "missing"]
)
def test_names_and_shapes_of_what_is_left_out_are_checked(untied, prefix, change):
    name = spoil(untied, prefix, change)
    with pytest.raises(CheckpointError) as caught:
        Kandinsky5T2IPipeline.from_pretrained(untied)
    assert old_name(name) in str(caught.value) or new_name(name) in str(caught.value)


@pytest.mark.parametrize(("prefix", "part"), [("visual", "vision"), ("lm_head", "head")])
def test_values_are_looked_at_when_they_are_brought_in(untied, prefix, part):
    spoil(untied, prefix, lambda t, n: t[n].view(-1)[3].fill_(float("nan")))
    pipe = Kandinsky5T2IPipeline.from_pretrained(untied)
    assert draw(pipe).isfinite().all()
    with pytest.raises(CheckpointError, match=r"not finite"):
        bring_in(pipe.text_encoder)
    assert left_out(pipe.text_encoder) == ("vision", "head"), "all or nothing"
    with pytest.raises(CheckpointError, match=r"not finite"):
        Kandinsky5T2IPipeline.from_pretrained(untied, text_encoder_parts=[part])


# -- Bringing in ---------------------------------------------------------------------------------------------


def look(encoder) -> torch.Tensor:
    """Hidden states of a picture of 4 tokens between words."""
    tokens = encoder.config
    ids = torch.tensor([[5, tokens.vision_start_token_id, *[tokens.image_token_id] * 4, 6, 7]])
    return encoder(
        input_ids=ids,
        mm_token_type_ids=(ids == tokens.image_token_id).int(),
        pixel_values=torch.randn(16, 3 * 2 * 14 * 14, generator=torch.Generator().manual_seed(3)).to(
            encoder.dtype
        ),
        image_grid_thw=torch.tensor([[1, 4, 4]]),
        output_hidden_states=True,
        logits_to_keep=torch.empty(0, dtype=torch.long),
    ).hidden_states[-1]


def write(encoder) -> list[int]:
    return encoder.generate(
        torch.tensor([[5, 6, 7]]), max_new_tokens=5, do_sample=False, eos_token_id=None
    ).tolist()


@torch.no_grad()
def test_parts_are_brought_in_when_they_are_needed(untied):
    whole = Kandinsky5T2IPipeline.from_pretrained(untied, **WHOLE).text_encoder
    pipe = Kandinsky5T2IPipeline.from_pretrained(untied)
    encoder, before = pipe.text_encoder, draw(pipe)
    with pytest.raises(RequestError, match=r'vision tower.*bring_in\(text_encoder, \["vision"\]\)'):
        look(encoder)
    with pytest.raises(RequestError, match=r'vocabulary projection.*text_encoder_parts=\["head"\]'):
        write(encoder)
    bring_in(encoder, ["vision"])
    assert left_out(encoder) == ("head",)
    assert torch.equal(look(encoder), look(whole))
    bring_in(encoder)
    bring_in(encoder)  # nothing is left to bring
    assert write(encoder) == write(whole) and torch.equal(look(encoder), look(whole))
    assert not encoder.training and not any(m.training for m in encoder.model.visual.modules())
    same_state(encoder, whole)
    assert torch.equal(draw(pipe), before)


@torch.no_grad()
def test_parts_follow_the_dtype_of_the_rest(untied):
    pipe = Kandinsky5T2IPipeline.from_pretrained(untied).to(torch.bfloat16)
    whole = Kandinsky5T2IPipeline.from_pretrained(untied, **WHOLE).to(torch.bfloat16)
    same_state(pipe.text_encoder, whole.text_encoder)
    bring_in(pipe.text_encoder)
    same_state(pipe.text_encoder, whole.text_encoder)
    distance = (look(pipe.text_encoder) - look(whole.text_encoder)).float().norm()
    assert distance < 0.02 * look(whole.text_encoder).float().norm()


def test_a_part_brings_no_gradient_where_the_rest_has_none(untied):
    pipe = Kandinsky5T2IPipeline.from_pretrained(untied)
    pipe.text_encoder.requires_grad_(False)
    bring_in(pipe.text_encoder)
    assert not any(p.requires_grad for p in pipe.text_encoder.parameters())


def test_files_that_went_or_changed(untied):
    pipe = Kandinsky5T2IPipeline.from_pretrained(untied)
    file = shards_of(untied, "lm_head")[0]
    raw = file.read_bytes()
    file.write_bytes(raw)  # the same bytes, but who knows
    with pytest.raises(CheckpointError, match=rf"{file.name} was changed"):
        bring_in(pipe.text_encoder, ["head"])
    file.unlink()
    with pytest.raises(CheckpointError, match=rf"{file.name} is gone"):
        bring_in(pipe.text_encoder, ["head"])
    assert left_out(pipe.text_encoder) == ("vision", "head")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pipe: pickle.loads(pickle.dumps(pipe))])
def test_copies_know_where_their_parts_are(untied, copied):
    encoder = copied(Kandinsky5T2IPipeline.from_pretrained(untied).text_encoder)
    bring_in(encoder)
    assert left_out(encoder) == ()


def test_a_relative_folder_is_found_again(untied, monkeypatch):
    monkeypatch.chdir(untied.parent)
    pipe = Kandinsky5T2IPipeline.from_pretrained(untied.name)
    monkeypatch.chdir("/")
    bring_in(pipe.text_encoder)
    assert left_out(pipe.text_encoder) == ()


# -- A task that uses a part ---------------------------------------------------------------------------------


def test_a_task_loads_what_it_uses(untied):
    assert left_out(SeeingPipeline.from_pretrained(untied).text_encoder) == ("head",)
    assert left_out(SeeingPipeline.from_pretrained(untied, text_encoder_parts=["head"]).text_encoder) == ()


@torch.no_grad()
def test_from_pipe_brings_in_what_the_other_task_uses(untied):
    pipe = Kandinsky5T2IPipeline.from_pretrained(untied, dtype=torch.bfloat16)
    expected = look(SeeingPipeline.from_pretrained(untied, dtype=torch.bfloat16).text_encoder)
    before = {name: getattr(pipe, name).dtype for name in MODELS}
    seeing = SeeingPipeline.from_pipe(pipe)
    assert all(seeing.components[name] is pipe.components[name] for name in pipe.components)
    assert left_out(seeing.text_encoder) == ("head",)
    assert torch.equal(look(seeing.text_encoder), expected)
    assert {name: getattr(seeing, name).dtype for name in MODELS} == before
    assert (seeing.default_steps, seeing.config["_name_or_path"]) == (pipe.default_steps, str(untied))
    assert type(Kandinsky5T2IPipeline.from_pipe(seeing)) is Kandinsky5T2IPipeline
    assert SeeingPipeline.from_pipe(pipe, default_steps=7, dtype=torch.float32).vae.dtype == torch.float32


def test_an_editing_checkpoint_draws_first_and_edits_then(saved_editing_folder):
    """The real editing pipeline, from text to image that had left the vision tower on disk."""
    image = Image.linear_gradient("L").convert("RGB").resize((64, 64))

    def edit(pipe):
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        return pipe(image, "make it blue", num_inference_steps=2, generator=generator, output_type="pt").image

    editing = Kandinsky5I2IPipeline.from_pretrained(saved_editing_folder)
    drawing = Kandinsky5T2IPipeline.from_pretrained(saved_editing_folder)
    assert left_out(editing.text_encoder) == () and left_out(drawing.text_encoder) == ("vision",)
    picture = draw(drawing)
    assert torch.equal(edit(Kandinsky5I2IPipeline.from_pipe(drawing)), edit(editing))
    assert torch.equal(draw(Kandinsky5T2IPipeline.from_pipe(editing)), picture)


def test_components_passed_by_hand_are_completed(untied):
    pipe = Kandinsky5T2IPipeline.from_pretrained(untied)
    assert left_out(SeeingPipeline(**pipe.components).text_encoder) == ("head",)
    other = Kandinsky5T2IPipeline.from_pretrained(
        untied, text_encoder=pipe.text_encoder, text_encoder_parts=["head"]
    )
    assert left_out(other.text_encoder) == ()


def test_from_pipe_refuses_what_it_cannot_give(untied, components):
    pipe = Kandinsky5T2IPipeline.from_pretrained(untied)
    shards_of(untied, "visual")[0].unlink()
    with pytest.raises(CheckpointError, match="is gone"):
        SeeingPipeline.from_pipe(pipe)
    theirs = DiffusionPipeline.from_pretrained(untied, text_encoder=None, **BROUGHT)
    with pytest.raises(RequestError, match=r"of diffusers; use Kandinsky5T2IPipeline.from_pretrained"):
        Kandinsky5T2IPipeline.from_pipe(theirs)


# -- Placement -----------------------------------------------------------------------------------------------


def offload(pipe, kind, monkeypatch):
    if kind == "model":
        from diffusers.pipelines import pipeline_utils

        # diffusers refuses the CPU as the device to offload from; the hooks themselves run on it.
        monkeypatch.setattr(pipeline_utils, "get_device", lambda: "cpu:0")
        pipe.enable_model_cpu_offload(device="cpu:0")
    elif kind == "sequential":
        for name in MODELS:
            cpu_offload(getattr(pipe, name), "cpu")
    else:
        blocks = {"offload_type": "block_level", "num_blocks_per_group": 1}
        for name in MODELS:
            apply_group_offloading(
                getattr(pipe, name),
                onload_device=torch.device("cpu"),
                offload_device=torch.device("cpu"),
                **({"offload_type": "leaf_level"} if kind == "leaves" else blocks),
            )


@pytest.mark.parametrize("kind", ["model", "sequential", "blocks", "leaves"])
@torch.no_grad()
def test_offload_of_what_is_there(untied, monkeypatch, kind):
    whole = Kandinsky5T2IPipeline.from_pretrained(untied, **WHOLE)
    expected, seen = draw(whole), look(whole.text_encoder)
    pipe = Kandinsky5T2IPipeline.from_pretrained(untied)
    offload(pipe, kind, monkeypatch)
    for _ in range(2):
        assert (draw(pipe) - expected).abs().max() < 1e-5
    if kind == "model":
        bring_in(pipe.text_encoder)
        assert torch.equal(look(pipe.text_encoder), seen)
        assert (draw(pipe) - expected).abs().max() < 1e-5
    else:
        with pytest.raises(RequestError, match="before offload is enabled"):
            bring_in(pipe.text_encoder)


@pytest.mark.parametrize("device_map", ["cpu", "balanced"])
def test_a_device_map(untied, device_map):
    if device_map == "balanced" and torch.cuda.is_available():
        pytest.skip("places components on accelerators, where there are any")
    expected = draw(Kandinsky5T2IPipeline.from_pretrained(untied, **WHOLE))
    pipe = Kandinsky5T2IPipeline.from_pretrained(untied, device_map=device_map)
    assert left_out(pipe.text_encoder) == ("vision", "head")
    assert (draw(pipe) - expected).abs().max() < 1e-5


def test_moves_and_casts(untied):
    pipe = Kandinsky5T2IPipeline.from_pretrained(untied, torch_dtype=torch.bfloat16).to("cpu")
    assert pipe.text_encoder.dtype == pipe.text_encoder.lm_head.dtype == torch.bfloat16
    pipe.text_encoder.to("meta")  # whatever moves, there is nothing here that cannot
    assert pipe.text_encoder.lm_head.dtype == torch.bfloat16


@pytest.mark.usefixtures("few_tokens")
def test_a_prompt_is_written_out_with_the_projection_that_was_left_on_disk(untied):
    pipe, whole = (Kandinsky5T2IPipeline.from_pretrained(untied, **given) for given in ({}, WHOLE))
    assert pipe.expand_prompt(SHORT) == whole.expand_prompt(SHORT) != SHORT
    assert left_out(pipe.text_encoder) == ("vision",)
