"""An autoencoder prepared for speed is the one it was: pictures, names, bytes, tiles, hooks and gradients."""

import copy

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import nn

from kandinsky5 import latents as latent_stage
from kandinsky5.autoencoder import prepare_for_speed, undo
from kandinsky5.autoencoder.attention import WideHeadAttention
from kandinsky5.autoencoder.parts import doubled
from kandinsky5.loading import load_pipeline
from kandinsky5.memory.published import VAE
from kandinsky5.placement import use_fast_autoencoder, why_no_triton
from kandinsky5.variants import embedded_folder

from ..pipelines.placing import WAYS, place

CUDA = torch.device("cuda")
SMALL = {**VAE, "block_out_channels": (32, 32, 64, 64), "layers_per_block": 1, "norm_num_groups": 8}


def drawn(**changes):
    torch.manual_seed(0)
    vae = AutoencoderKL(**{**SMALL, "sample_size": 64, **changes}).eval()
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            if "norm" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return vae


@pytest.fixture(scope="module")
def ordinary():
    return drawn()


@pytest.fixture
def fast(ordinary):
    vae = copy.deepcopy(ordinary)
    assert prepare_for_speed(vae) is None
    return vae


@pytest.fixture
def latents():
    return torch.randn(2, 16, 9, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def pixels():
    return torch.rand(2, 3, 72, 48, generator=torch.Generator().manual_seed(2)) * 2 - 1


def decoded(vae, latents):
    with torch.no_grad():
        return vae.decode(latents, return_dict=False)[0]


def moments(vae, pixels):
    with torch.no_grad():
        return vae.encode(pixels).latent_dist.parameters


def distance(found, expected):
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def test_the_same_pictures(ordinary, fast, latents, pixels):
    found = decoded(fast, latents)
    assert distance(found, decoded(ordinary, latents)) < 1e-5
    assert found.is_contiguous(), "in the order that the postprocessor reads"
    assert distance(moments(fast, pixels), moments(ordinary, pixels)) < 1e-5
    layouts = []
    for module in fast.decoder.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(
                lambda _, given: layouts.append(given[0].is_contiguous(memory_format=torch.channels_last))
            )
    decoded(fast, latents)
    assert all(layouts) and len(layouts) > 20


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
def test_narrow_dtypes_err_as_before(ordinary, fast, latents, narrow):
    truth = decoded(ordinary, latents)
    before, after = (
        distance(decoded(copy.deepcopy(vae).to(narrow), latents.to(narrow)), truth)
        for vae in (ordinary, fast)
    )
    assert after < 1.1 * before


def test_tiles_and_slices(ordinary, fast, latents, pixels):
    """Of an autoencoder that is prepared before and after."""
    both = copy.deepcopy(ordinary), fast
    for vae in both:
        latent_stage.use_tiles(vae, 40)
        vae.enable_slicing()
    assert distance(*(decoded(vae, latents) for vae in both)) < 1e-5
    assert distance(*(moments(vae, pixels) for vae in both)) < 1e-5


def test_names_and_bytes_are_what_they_were(ordinary, fast, tmp_path):
    for name, vae in (("ordinary", ordinary), ("fast", fast)):
        vae.save_pretrained(tmp_path / name)
    for file in (tmp_path / "ordinary").iterdir():
        assert file.read_bytes() == (tmp_path / "fast" / file.name).read_bytes()
    again = AutoencoderKL.from_pretrained(tmp_path / "fast")
    assert list(again.state_dict()) == list(fast.state_dict())


def test_the_way_back(ordinary, fast, latents):
    assert prepare_for_speed(fast) is None, "twice is once"
    undo(fast)
    assert [type(module) for module in fast.modules()] == [type(module) for module in ordinary.modules()]
    assert torch.equal(decoded(fast, latents), decoded(ordinary, latents))
    undo(fast)


def test_gradients_go_the_ordinary_way(ordinary, fast, latents):
    found = []
    for vae in (ordinary, fast):
        given = latents.clone().requires_grad_()
        picture = vae.decode(given).sample
        found += [picture, *torch.autograd.grad(picture.square().sum(), given)]
    assert torch.equal(found[0], found[2]) and torch.equal(found[1], found[3])


def test_without_attention_and_with_outer_convolutions(latents):
    changes = {"mid_block_add_attention": False, "use_quant_conv": True, "use_post_quant_conv": True}
    vae = drawn(**changes)
    before = decoded(vae, latents)
    assert prepare_for_speed(vae) is None
    assert distance(decoded(vae, latents), before) < 1e-5


def test_weights_that_come_when_a_layer_is_called(ordinary, fast, latents):
    """Offload hooks on each layer, put on afterwards, fire; with hooks that are there already it is left as it is."""
    from accelerate import cpu_offload

    before = decoded(ordinary, latents)
    cpu_offload(fast, execution_device=torch.device("cpu"))
    assert fast.decoder.conv_in.weight.is_meta
    assert distance(decoded(fast, latents), before) < 1e-5
    hooked = cpu_offload(copy.deepcopy(ordinary), execution_device=torch.device("cpu"))
    assert "hooks" in prepare_for_speed(hooked)
    assert torch.equal(decoded(hooked, latents), before)


def test_what_it_does_not_know_is_left_alone(latents):
    other = nn.Sequential(nn.GroupNorm(2, 4))
    assert "another autoencoder" in prepare_for_speed(other) and type(other[0]) is nn.GroupNorm
    scaled = drawn()
    scaled.decoder.up_blocks[0].resnets[0].output_scale_factor = 2.0
    assert "ResnetBlock2D" in prepare_for_speed(scaled)
    relu = drawn(act_fn="relu")
    before = decoded(relu, latents)
    assert prepare_for_speed(relu) is not None
    assert torch.equal(decoded(relu, latents), before)


def test_the_processor_is_the_users(fast, latents):
    """One that was set afterwards computes; diffusers' names for the default do too."""
    attn = fast.decoder.mid_block.attentions[0]
    assert type(attn.processor) is WideHeadAttention
    before = decoded(fast, latents)
    fast.set_attn_processor(AttnProcessor2_0())
    assert torch.equal(decoded(fast, latents), before), "on a CPU it is diffusers' own"


@pytest.mark.parametrize("channels, dtype", [(8, torch.bfloat16), (3, torch.bfloat16), (3, torch.float32)])
def test_doubled(channels, dtype):
    x = torch.randn(2, channels, 3, 5).to(dtype)
    found = doubled(x)
    assert torch.equal(found, x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_who_asks_for_it(monkeypatch):
    """Whoever loads a pipeline where Triton's kernels run, in any way but the ordinary one."""
    pipe = load_pipeline(str(embedded_folder()), device="cpu")
    assert prepared(pipe) is False, "not on a CPU"
    assert use_fast_autoencoder(pipe.vae, torch.device("cpu")) is False
    assert use_fast_autoencoder(None, CUDA) is False
    monkeypatch.setattr("kandinsky5.placement.why_no_triton", lambda device, float8: None)
    monkeypatch.setattr("kandinsky5.loading.use_mode", lambda network, mode, device: None)
    assert prepared(load_pipeline(str(embedded_folder()), device="cpu", mode=None)) is False
    fast = load_pipeline(str(embedded_folder()), device="cpu")
    assert prepared(fast) is True
    latents = torch.randn(1, 1, 8, 8, 16)
    found, expected = (one.finish(latents, "pt") for one in (fast, pipe))
    assert distance(found, expected) < 1e-5


def prepared(pipe):
    return prepare_for_speed(copy.deepcopy(pipe.vae)) is None and any(
        type(module).__module__.startswith("kandinsky5") for module in pipe.vae.modules()
    )


@pytest.mark.gpu
@pytest.mark.parametrize("side", [512, 1024])
def test_the_published_size_on_a_gpu(side):
    """Errors of bfloat16 against float32, ordinary and fast, both ways; peaks of memory."""
    assert why_no_triton(CUDA, float8=False) is None
    vae = drawn(**VAE).to(CUDA)
    latents = torch.randn(1, 16, side // 8, side // 8, device=CUDA)
    pixels = torch.rand(1, 3, side, side, device=CUDA) * 2 - 1
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        truths = decoded(vae, latents), moments(vae, pixels)
    vae.bfloat16()
    errors, peaks = [], []
    for make in (undo, prepare_for_speed):
        make(vae)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        found = decoded(vae, latents.bfloat16()), moments(vae, pixels.bfloat16())
        errors.append([distance(one, truth) for one, truth in zip(found, truths, strict=True)])
        peaks.append(torch.cuda.max_memory_allocated())
    assert all(after < 1.05 * before for before, after in zip(*errors, strict=True)), errors
    assert peaks[1] < 1.1 * peaks[0], peaks


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_moves_and_tiles_on_a_gpu(dtype):
    vae = drawn()
    assert prepare_for_speed(vae) is None
    plain = copy.deepcopy(vae)
    undo(plain)
    latents = torch.randn(2, 16, 16, 24)
    truth = decoded(plain, latents)
    fast, plain = (one.to(CUDA, dtype) for one in (vae, plain))
    given = latents.to(CUDA, dtype)
    before, after = (distance(decoded(one, given).cpu(), truth) for one in (plain, fast))
    assert after < max(1.1 * before, 1e-4)
    for one in (plain, fast):
        latent_stage.use_tiles(one, 64)
    assert distance(decoded(fast, given), decoded(plain, given)) < max(2 * before, 1e-3)
    assert distance(decoded(fast.float().cpu(), latents), decoded(plain.float().cpu(), latents)) < 1e-4


@pytest.mark.gpu
def test_eight_pictures_at_once_on_a_gpu():
    """2^31 elements and more before the last layers: torch's own upsampling with channels last refuses them."""
    vae = drawn(**VAE).to(CUDA, torch.bfloat16)
    assert prepare_for_speed(vae) is None
    latents = torch.randn(9, 16, 128, 128, device=CUDA).bfloat16()
    found = decoded(vae, latents)
    for row in (0, 8):
        assert distance(found[row : row + 1], decoded(vae, latents[row : row + 1])) < 0.01


@pytest.mark.gpu
@pytest.mark.parametrize("how", WAYS)
def test_pipelines_on_a_gpu(how):
    """Fast by default, and drawing the same as the ordinary way, wherever its weights lie between calls."""
    pipes = [load_pipeline(str(embedded_folder()), device="cuda", mode=mode) for mode in ("auto", None)]
    assert [prepared(pipe) for pipe in pipes] == [True, False]
    place(pipes[0].to("cpu"), how)
    latents = torch.randn(1, 1, 32, 32, 16)
    pictures = [pipe.finish(latents.to(CUDA), "pt").float().cpu() for pipe in pipes]
    assert distance(*pictures) < 0.02
