"""On CUDA: pictures of placed pipelines are the resident one's, bit for bit, and predicted bytes are not exceeded."""

import dataclasses

import pytest
import torch

from kandinsky5.budget import Budget
from kandinsky5.errors import CapacityError
from kandinsky5.loading import load_pipeline
from kandinsky5.memory import load_planned, plan_for
from kandinsky5.memory.packing import write_packed
from kandinsky5.pipelines import Kandinsky5I2IPipeline, Kandinsky5T2IPipeline
from kandinsky5.placement import use_fast_autoencoder, use_mode
from tests.pipelines.conftest import SHORT, picture

from .conftest import DTYPE
from .test_placing import PLACES, draw

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")
SMALL = Budget(width=64, height=64)


def plan_on_cuda(folder, *, edits: bool = False, **changes):
    plan = plan_for(folder, SMALL, device=CUDA, dtype=DTYPE, edits=edits)
    return dataclasses.replace(plan, **changes)


@pytest.mark.parametrize("mode", [None, "exact"])
@pytest.mark.parametrize("changes", PLACES.values(), ids=PLACES.keys())
def test_the_picture_of_the_resident_pipeline(half_folder, changes, mode):
    resident = Kandinsky5T2IPipeline.from_pretrained(half_folder).to("cuda")
    use_mode(resident.transformer, mode)
    use_fast_autoencoder(resident.vae, CUDA)  # as a plan does
    expected = draw(resident)
    pipe = load_planned(Kandinsky5T2IPipeline, half_folder, plan_on_cuda(half_folder, **changes), dtype=DTYPE)
    use_mode(pipe.transformer, mode, device=CUDA)
    for _ in range(3):
        assert torch.equal(draw(pipe), expected)
    if mode == "exact":
        with torch.no_grad():  # as the pipeline asks
            assert pipe.transformer.fast_path.obstacle(pipe.transformer) is None


def edited(pipe: Kandinsky5I2IPipeline) -> dict[str, torch.Tensor]:
    """What each stage of an edit comes to, in their order."""
    source = picture(64, 64)
    pixels = torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64).to("cuda", DTYPE)
    with torch.no_grad():
        text, pooled, _ = pipe.encode_prompt(SHORT, source)
        found = {"text": text, "pooled": pooled, "encoded": pipe.vae.encode(pixels).latent_dist.parameters}

    def keep(_: object, index: int, __: object, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found[f"after step {index + 1}"] = tensors["latents"].clone()
        return tensors

    given = {"image": source, "width": None, "height": None, "callback_on_step_end": keep}
    found["picture"] = draw(pipe, **given)
    return found


def differing(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> list[str]:
    return [name for name, tensor in expected.items() if not torch.equal(tensor, found[name])]


@pytest.mark.parametrize(
    "changes", [{}, PLACES["everything that can"]], ids=["all on the device", "streamed"]
)
def test_editing(half_editing_folder, changes):
    resident = Kandinsky5I2IPipeline.from_pretrained(half_editing_folder).to("cuda")
    use_mode(resident.transformer, "exact")  # which a plan chooses by itself
    use_fast_autoencoder(resident.vae, CUDA)
    expected = edited(resident)
    assert differing(edited(resident), expected) == [], "the same pipeline draws the same"
    plan = plan_on_cuda(half_editing_folder, edits=True, **changes)
    pipe = load_planned(Kandinsky5I2IPipeline, half_editing_folder, plan, dtype=DTYPE)
    assert differing(edited(pipe), expected) == []


@pytest.mark.parametrize("form", ["int8", "nf4"])
@pytest.mark.parametrize("changes", [{}, PLACES["a block from host memory"]], ids=["resident", "streamed"])
def test_packed_on_the_way_and_ahead(half_folder, tmp_path, form, changes):
    """A plan packs on the GPU what `quantize` packs on the CPU; roundings of scales may differ in the last bit."""
    if form == "nf4":
        pytest.importorskip("bitsandbytes")
    write_packed(half_folder, tmp_path / "packed", network=form, encoder=form, device=torch.device("cpu"))
    plan = plan_on_cuda(half_folder, network=form, encoder=form, **changes)
    pictures = [
        draw(load_planned(Kandinsky5T2IPipeline, folder, plan, dtype=DTYPE))
        for folder in (half_folder, tmp_path / "packed")
    ]
    assert (pictures[0] - pictures[1]).float().pow(2).mean().sqrt() < 0.02


def test_nothing_stays_in_the_slots_between_pictures(half_folder):
    plan = plan_on_cuda(half_folder, **PLACES["everything that can"])
    pipe = load_planned(Kandinsky5T2IPipeline, half_folder, plan, dtype=DTYPE)
    before = torch.cuda.memory_allocated()
    draw(pipe)
    assert torch.cuda.memory_allocated() - before < 2**22


def test_running_out_says_plan_and_peak_and_the_next_request_works(half_folder):
    pipe = load_pipeline(str(half_folder), device="cuda", dtype="bf16", memory=SMALL)
    expected = draw(pipe)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 64 * 2**20) / total)
    try:
        with pytest.raises(CapacityError, match=r"Memory ended although the plan.*GB were reached"):
            draw(pipe, width=2048, height=2048)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert torch.equal(draw(pipe), expected)
