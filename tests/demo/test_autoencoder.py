"""The fold that gives latents unit scale, and the losses of the autoencoder."""

import torch
from diffusers import AutoencoderKL

from kandinsky5.demo.architecture import Architecture, build_autoencoder
from kandinsky5.demo.autoencoder_training import autoencoder_losses, fold_scale, latent_moments

SMALL = Architecture(image_size=64, autoencoder_widths=(8, 8, 16, 16), autoencoder_norm_groups=4)


def random_autoencoder() -> tuple[AutoencoderKL, torch.Tensor]:
    torch.manual_seed(0)
    vae = build_autoencoder(SMALL).requires_grad_(False)
    return vae, torch.rand(6, 3, 64, 64) * 2 - 1


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
    pictures = torch.rand(2, 3, 8, 8)
    zeros = torch.zeros(2, 16, 1, 1)
    perfect = autoencoder_losses(pictures, pictures, zeros, zeros)
    assert {name: float(value) for name, value in perfect.items()} == dict.fromkeys(perfect, 0.0)
    brighter = autoencoder_losses(pictures, pictures + 0.5, zeros + 2, zeros)
    assert abs(float(brighter["pixels"]) - 0.5) < 1e-6 and float(brighter["edges"]) < 1e-6
    assert float(brighter["divergence"]) == 2.0 and float(brighter["centre"]) == 4.0
    assert float(autoencoder_losses(pictures, pictures.roll(1, -1), zeros, zeros)["edges"]) > 0.1
