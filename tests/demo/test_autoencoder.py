"""The autoencoder's start, its losses, the fold that gives latents unit scale, and the figures that judge it."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from kandinsky5.demo.architecture import Architecture, build_autoencoder
from kandinsky5.demo.autoencoder_quality import (
    LEAST_THINGS_DB,
    NEAR,
    measure,
    near_things,
    require_quality,
    save_quality,
    save_reconstructions,
)
from kandinsky5.demo.autoencoder_training import (
    AutoencoderLesson,
    AutoencoderRecipe,
    balanced_weights,
    begin_transparent,
    fold_scale,
    latent_losses,
    latent_moments,
    picture_losses,
)
from kandinsky5.demo.renderer import pack, render
from kandinsky5.demo.running import Running
from kandinsky5.demo.world import draw_scene
from kandinsky5.errors import CheckpointError
from kandinsky5.train.settings import OptimiserSettings
from kandinsky5.train.tuning.stepper import Stepper

SMALL = Architecture(image_size=64, autoencoder_widths=(8, 8, 16, 16))


def random_autoencoder() -> tuple[AutoencoderKL, torch.Tensor]:
    torch.manual_seed(0)
    vae = build_autoencoder(SMALL).requires_grad_(False)
    return vae, torch.rand(6, 3, 64, 64) * 2 - 1


def packed_scenes(count: int, seed: int = 1) -> torch.Tensor:
    rng = random.Random(seed)
    return pack([draw_scene(rng) for _ in range(count)])


def test_folded_latents_have_unit_scale() -> None:
    vae, pictures = random_autoencoder()
    before = vae.encode(pictures).latent_dist
    mean, deviation = latent_moments(vae, [pictures])
    assert float((deviation - 1).abs().max()) > 0.1  # or the test shows nothing
    fold_scale(vae, mean, deviation)
    after = vae.encode(pictures).latent_dist
    shape = (1, -1, 1, 1)
    torch.testing.assert_close(
        after.mean, (before.mean - mean.view(shape)) / deviation.view(shape), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(after.std, before.std / deviation.view(shape), rtol=1e-4, atol=1e-5)
    mean, deviation = latent_moments(vae, [pictures])
    torch.testing.assert_close(mean, torch.zeros(16), rtol=0, atol=1e-4)
    torch.testing.assert_close(deviation, torch.ones(16), rtol=0, atol=1e-4)


def test_folding_the_scale_leaves_pictures_unchanged() -> None:
    vae, pictures = random_autoencoder()
    before = vae.decode(vae.encode(pictures).latent_dist.mean).sample
    _, deviation = latent_moments(vae, [pictures])
    fold_scale(vae, torch.zeros(16), deviation)
    after = vae.decode(vae.encode(pictures).latent_dist.mean).sample
    torch.testing.assert_close(after, before, rtol=0, atol=2e-5)


def test_folding_the_mean_changes_the_outermost_latents_alone() -> None:
    vae, pictures = random_autoencoder()
    latents = vae.encode(pictures).latent_dist.mean
    before = vae.decoder.conv_in(latents)
    mean, deviation = latent_moments(vae, [pictures])
    fold_scale(vae, mean, deviation)
    difference = (vae.decoder.conv_in(vae.encode(pictures).latent_dist.mean) - before).abs()
    assert float(difference[..., 1:-1, 1:-1].max()) < 1e-4 < float(difference.max())


def test_losses_are_zero_where_nothing_is_wrong_and_see_each_fault() -> None:
    pictures, even = torch.rand(2, 3, 8, 8), torch.ones(2, 1, 8, 8)
    perfect = picture_losses(pictures, pictures, even)
    assert {name: float(value) for name, value in perfect.items()} == dict.fromkeys(perfect, 0.0)
    brighter = picture_losses(pictures, pictures + 0.5, even)
    assert abs(float(brighter["pixels"]) - 0.5) < 1e-6 and float(brighter["edges"]) < 1e-6
    assert abs(float(brighter["squares"]) - 0.25) < 1e-6
    assert float(picture_losses(pictures, pictures.roll(1, -1), even)["edges"]) > 0.1


def test_latents_of_unit_scale_without_tails_cost_nothing() -> None:
    latents = torch.ones(2, 16, 4, 4)
    latents[1] = -1
    assert {name: float(v) for name, v in latent_losses(latents).items()} == {
        "centre": 0,
        "scale": 0,
        "tails": 0,
    }
    found = {name: float(v) for name, v in latent_losses(4 * latents).items()}
    assert found == {"centre": 0, "scale": 225, "tails": 1}
    assert float(latent_losses(latents.abs())["centre"]) == 1


def test_things_have_their_share_of_the_loss_however_small_they_are() -> None:
    things = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    things[0, 0, :2, :2] = True
    weights = balanced_weights(things, 0.6)
    assert abs(float(weights.mean()) - 1) < 1e-6
    assert abs(float(weights[things].sum() / weights.sum()) - 0.6) < 1e-6
    assert bool(
        balanced_weights(torch.zeros_like(things), 0.6).isfinite().all()
    )  # a batch with nothing in sight
    pictures = torch.zeros(2, 3, 8, 8)
    losses = picture_losses(pictures, pictures + 0.5 * things, weights)
    assert abs(float(losses["pixels"]) - 0.5 * 0.6) < 1e-6


def test_pixels_near_things_are_those_that_differ_from_the_ground_and_their_neighbours() -> None:
    packed = packed_scenes(4)
    pictures = render(packed, 64)
    near = near_things(pictures, packed)
    without = packed.clone()
    without[:, :-1, 2] = 0
    differs = (pictures - render(without, 64)).abs().amax(dim=1, keepdim=True) > 0.03
    assert bool(near[differs].all()) and 0.01 < float(near.float().mean()) < 0.9
    for scene in range(4):
        things = differs[scene, 0].nonzero().float()
        furthest = (near[scene, 0].nonzero().float()[:, None] - things).abs().amax(-1).amin(-1).max()
        assert furthest == NEAR
    assert not near_things(render(without, 64), without).any()


def test_a_transparent_start_hands_colours_through() -> None:
    """Up to the last norm the channels of flat pictures are their colours; a straight line maps them back.

    After PyTorch's own start the skip path leaves a quarter of the colours' deviation, under random branches.
    """
    torch.manual_seed(0)
    colours = torch.rand(64, 3) * 2 - 1
    pictures = colours[:, :, None, None].expand(-1, -1, 64, 64)
    plain, clear = build_autoencoder(SMALL), build_autoencoder(SMALL)
    begin_transparent(clear)
    correlations = {}
    for name, vae in (("plain", plain), ("clear", clear)):
        with torch.no_grad():
            hidden = vae.encoder.mid_block(through_down_blocks(vae, pictures))[:, :3, 4, 4]
        correlations[name] = float(
            torch.corrcoef(torch.cat([colours, hidden], dim=1).T)[:3, 3:].diagonal().min()
        )
    assert correlations["clear"] > 0.95 > 0.8 > correlations["plain"]
    with torch.no_grad():
        posterior = clear.encode(pictures).latent_dist
    assert float(posterior.std.max()) < 0.01


def through_down_blocks(vae: AutoencoderKL, pictures: torch.Tensor) -> torch.Tensor:
    hidden = vae.encoder.conv_in(pictures)
    for block in vae.encoder.down_blocks:
        hidden = block(hidden)
    return hidden


def test_a_transparent_start_blurs_and_does_not_shift() -> None:
    torch.manual_seed(0)
    vae = build_autoencoder(SMALL)
    begin_transparent(vae)
    pictures = torch.zeros(1, 3, 64, 64)
    pictures[:, 0, 24:32, 40:48] = 1  # latent pixel (3, 5) exactly
    with torch.no_grad():
        hidden = through_down_blocks(vae, pictures)
        empty = through_down_blocks(vae, torch.zeros_like(pictures))
    change = (hidden - empty)[0, 0]
    assert change.argmax() == 3 * 8 + 5 and change.max() > 0.7


def test_a_few_steps_learn() -> None:
    torch.manual_seed(0)
    optimiser = OptimiserSettings(rate=2e-3, weight_decay=0.01, warmup=5, decay_share=0.5)
    recipe = AutoencoderRecipe(architecture=SMALL, optimiser=optimiser)
    vae = build_autoencoder(SMALL)
    begin_transparent(vae)
    running = Running(device=torch.device("cpu"), dtype=torch.float32, workers=0)
    lesson = AutoencoderLesson(vae, recipe, running)
    stepper = Stepper(lesson.weights, optimiser, steps=60, ema=0.999)
    packed, losses = packed_scenes(4), []
    for step in range(40):
        loss, parts = lesson.loss(packed, step)
        loss.backward()
        lesson.weights.take_gradients()
        losses.append(float(parts["pixels"].detach()))
        stepper()
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_quality_tells_things_from_ground(tmp_path: Path) -> None:
    vae, _ = random_autoencoder()
    packed = packed_scenes(3)
    quality = measure(vae, [packed, packed_scenes(3, seed=2)], 64)
    assert quality.pictures == 6
    assert (
        min(quality.things_db, quality.ground_db)
        <= quality.all_db
        <= max(quality.things_db, quality.ground_db)
    )
    assert quality.deviation[0] <= quality.deviation[1] and quality.largest > 0 and "dB" in str(quality)
    # A thing the size of nothing leaves ground alone, and a decoder that says mid-grey is right about a grey ground.
    flat = packed.clone()
    flat[:, :-1, 2], flat[:, -1, 4:7] = 0, 0.5
    vae.decoder.conv_out.weight.zero_()
    vae.decoder.conv_out.bias.fill_(0.2)
    assert abs(measure(vae, [flat], 64).ground_db - 20.0) < 0.01  # 0.1 of [0, 1]
    save_reconstructions(vae, packed, 64, tmp_path / "sheet.png")
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.size == (192, 128)
    drawn = torch.tensor(list(sheet.crop((0, 0, 64, 64)).tobytes())).view(64, 64, 3).permute(2, 0, 1)
    assert torch.equal(drawn, ((render(packed, 64)[0] + 1) * 127.5).round().long())
    assert sheet.getpixel((100, 100)) == (153, 153, 153)


def test_a_network_is_not_trained_on_a_poor_autoencoder(tmp_path: Path) -> None:
    path = tmp_path / "quality.json"
    with pytest.raises(CheckpointError, match="train it first"):
        require_quality(path)
    vae, _ = random_autoencoder()
    quality = measure(vae, [packed_scenes(2)], 64)
    save_quality(quality, path)
    assert json.loads(path.read_text())["things_db"] == quality.things_db < LEAST_THINGS_DB
    with pytest.raises(CheckpointError, match=f"{quality.things_db:.2f} dB.*24 dB"):
        require_quality(path)
    require_quality(path, quality.things_db)
    save_quality(replace(quality, things_db=LEAST_THINGS_DB), path)
    require_quality(path)
