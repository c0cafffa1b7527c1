"""On an accelerator: the picture of the CPU, by every way of placing the components. Run with `-m gpu`."""

import pytest
import torch

from kandinsky5.pipelines import Kandinsky5T2IPipeline
from tests.pipelines.placing import WAYS, place

from .conftest import MIDDLE, SHORT

pytestmark = pytest.mark.gpu


def draw(pipe):
    pipe.set_progress_bar_config(disable=True)
    seeds = [torch.Generator().manual_seed(s) for s in (0, 1)]
    return pipe([SHORT, MIDDLE], num_inference_steps=3, generator=seeds, output_type="pt").image.float().cpu()


@pytest.fixture(scope="module")
def expected(saved_folder):
    return draw(Kandinsky5T2IPipeline.from_pretrained(saved_folder))


@pytest.mark.parametrize("how", WAYS)
def test_the_picture_of_the_cpu(saved_folder, expected, how):
    pipe = Kandinsky5T2IPipeline.from_pretrained(saved_folder)
    place(pipe, how)
    assert (draw(pipe) - expected).abs().max() < 2e-3, "float32 kernels of two devices, three steps"
    assert (draw(pipe) - expected).abs().max() < 2e-3, "and once more, after the hooks were freed"


def test_the_documented_move(saved_folder, expected):
    pipe = Kandinsky5T2IPipeline.from_pretrained(saved_folder).to("cuda", dtype=torch.bfloat16)
    assert (draw(pipe) - expected).pow(2).mean().sqrt() < 0.03


def test_nothing_stays_on_the_device_after_a_cancel(saved_folder):
    pipe = Kandinsky5T2IPipeline.from_pretrained(saved_folder)
    pipe.enable_model_cpu_offload()

    def cancel(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe(SHORT, num_inference_steps=2, callback_on_step_end=cancel)
    assert {p.device.type for p in pipe.transformer.parameters()} == {"cpu"}


def test_same_seed_same_bytes(saved_folder):
    pipe = Kandinsky5T2IPipeline.from_pretrained(saved_folder, dtype=torch.bfloat16).to("cuda")
    assert torch.equal(draw(pipe), draw(pipe))


def test_compiled_blocks_draw_the_same(saved_folder):
    pipe = Kandinsky5T2IPipeline.from_pretrained(saved_folder).to("cuda")
    eager = draw(pipe)
    pipe.transformer.compile_repeated_blocks()
    assert (draw(pipe) - eager).abs().max() < 2e-3
