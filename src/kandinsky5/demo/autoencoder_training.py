"""Trains the embedded model's autoencoder on endless rendered scenes.

Comes in: a recipe and a working folder. Goes out: an `AutoencoderKL` folder whose latents have mean 0 and deviation 1
in every channel, and its error on scenes it has not seen. It does not know of text or of the network that will live in
those latents.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from kandinsky5.demo.architecture import Architecture, build_autoencoder, cast_parameters
from kandinsky5.demo.renderer import render
from kandinsky5.demo.running import Running
from kandinsky5.demo.scene_batches import PackedScenes, batches_from
from kandinsky5.train.run import resume, run
from kandinsky5.train.update import Update, UpdateSettings

logger = logging.getLogger(__name__)

STATE = Path("autoencoder/state.safetensors")
FOLDER = Path("autoencoder/vae")
MEASURING_BATCHES = range(10**9, 10**9 + 8)
"""Batches for statistics and error; training never counts this far."""


@dataclass(frozen=True, kw_only=True)
class AutoencoderRecipe:
    """What decides the result. Weights of the loss are per pixel or per latent value."""

    architecture: Architecture = field(default_factory=Architecture)
    update: UpdateSettings = field(
        default_factory=lambda: UpdateSettings(steps=1500, peak=1e-3, warmup=100, decay_share=0.5)
    )
    batch: int = 64
    seed: int = 5
    edge_weight: float = 1.0
    divergence_weight: float = 1e-6
    centre_weight: float = 0.1
    latent_noise: float = 0.1
    noise_ramp: tuple[float, float] = (0.25, 0.5)

    def noise_at(self, step: int) -> float:
        """Noise added to the latents at this step, in deviations of each channel.

        None at first: pictures are mostly one flat colour, whose trace in fresh latents is weaker than any useful
        noise, and an autoencoder that starts under noise never learns its colours (21 dB after 1,600 steps).
        """
        begin, end = (share * self.update.steps for share in self.noise_ramp)
        return self.latent_noise * min(1.0, max(0.0, (step - begin) / max(1.0, end - begin)))


def train_autoencoder(recipe: AutoencoderRecipe, running: Running, work: Path) -> bool:
    """Train, or continue; once finished write the folded weights to `work / FOLDER`. Returns whether it is finished."""
    torch.manual_seed(recipe.seed)
    vae = build_autoencoder(recipe.architecture).to(running.device)
    _begin_certain(vae)
    cast_parameters(vae, running.dtype)
    update = Update(dict(vae.named_parameters()), recipe.update)
    settings = asdict(recipe)
    resume(update, work / STATE, settings)
    scenes = PackedScenes(seed=recipe.seed, batch=recipe.batch)
    batches = batches_from(
        scenes, range(update.step, recipe.update.steps), running.workers, pin=running.device.type == "cuda"
    )
    gradients = AutoencoderGradients(vae, update, recipe, running)
    finished = run(
        update,
        batches,
        gradients,
        rows_per_batch=recipe.batch,
        recipe=settings,
        path=work / STATE,
        limits=running.limits,
    )
    if finished:
        _finish(recipe, running, update.average(), scenes, work / FOLDER)
    return finished


class AutoencoderGradients:
    """Gradients of one batch: draw, encode, sample, decode, compare."""

    def __init__(self, vae: AutoencoderKL, update: Update, recipe: AutoencoderRecipe, running: Running):
        self._vae = vae
        self._update = update
        self._recipe = recipe
        self._running = running
        self._draw: Callable[[Tensor, int], Tensor] = render
        if running.compiles("renderer"):
            self._draw = torch.compile(render, dynamic=False)
        if running.compiles("autoencoder"):
            vae.encoder.compile(dynamic=False)
            vae.decoder.compile(dynamic=False)

    def __call__(self, packed: Tensor, step: int) -> Mapping[str, Tensor]:
        """See `kandinsky5.train.run.Gradients`."""
        recipe, running = self._recipe, self._running
        generator = running.generator(recipe.seed, step)
        pictures = self._draw(packed.to(running.device, non_blocking=True), recipe.architecture.image_size)
        pictures = pictures.to(running.dtype)
        posterior = self._vae.encode(pictures).latent_dist
        mean, variance_log = posterior.mean.float(), posterior.logvar.float()

        def noise() -> Tensor:
            return torch.randn(mean.shape, generator=generator, device=mean.device)

        deviation = mean.detach().std(dim=(0, 2, 3), keepdim=True)
        spread = torch.exp(0.5 * variance_log), recipe.noise_at(step) * deviation
        latents = mean + spread[0] * noise() + spread[1] * noise()
        decoded = self._vae.decode(latents.to(running.dtype)).sample
        parts = autoencoder_losses(pictures.float(), decoded.float(), mean, variance_log)
        loss = (
            parts["pixels"]
            + recipe.edge_weight * parts["edges"]
            + recipe.divergence_weight * parts["divergence"]
            + recipe.centre_weight * parts["centre"]
        )
        loss.backward()
        self._update.masters.take_gradients()
        return parts


def autoencoder_losses(
    pictures: Tensor, decoded: Tensor, mean: Tensor, variance_log: Tensor
) -> dict[str, Tensor]:
    """The parts of the loss, float32 scalars.

    Args:
        pictures: (B, 3, S, S) in [-1, 1].
        decoded: of the same shape.
        mean: of the posterior (B, C, s, s).
        variance_log: the logarithm of its variance.

    Returns:
        `pixels`: mean absolute error; `edges`: that of the differences between neighbours, both ways; `divergence`:
        Kullback-Leibler from N(0, 1), a latent value; `centre`: squared mean of each channel, which keeps the part of
        the fold that zero padding does not see (`fold_scale`) near zero.
    """
    error = decoded - pictures
    return {
        "pixels": error.abs().mean(),
        "edges": error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean(),
        "divergence": 0.5 * (mean.square() + variance_log.exp() - 1 - variance_log).mean(),
        "centre": mean.mean(dim=(0, 2, 3)).square().mean(),
    }


@torch.no_grad()
def _begin_certain(vae: AutoencoderKL) -> None:
    """Start the posterior's variance at e^-10 everywhere: a variance near 1 would hide the fresh latents."""
    channels = vae.config.latent_channels
    vae.encoder.conv_out.weight[channels:] = 0
    vae.encoder.conv_out.bias[channels:] = -10


@torch.no_grad()
def latent_moments(vae: AutoencoderKL, pictures: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,) of the latents' posterior means, in float32."""
    latents = torch.cat([vae.encode(batch).latent_dist.mean.float() for batch in pictures])
    return latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))


@torch.no_grad()
def fold_scale(vae: AutoencoderKL, mean: Tensor, deviation: Tensor) -> None:
    """Rewrite the convolutions next to the latents so that latents become `(z - mean) / deviation`, channel by channel.

    The pipeline then multiplies by a `scaling_factor` of 1 and ignores shifts, as it does for the published models.
    Pictures decode as before, but for the outermost latent row and column, where the decoder's zero padding stands for
    `mean` now and for 0 before.
    """
    into, out = vae.encoder.conv_out, vae.decoder.conv_in
    channels = len(mean)
    into.weight[:channels] /= deviation[:, None, None, None]
    into.bias[:channels] = (into.bias[:channels] - mean) / deviation
    into.bias[channels:] -= 2 * deviation.log()
    out.bias += (out.weight * mean[None, :, None, None]).sum(dim=(1, 2, 3))
    out.weight *= deviation[None, :, None, None]


@torch.no_grad()
def peak_signal_to_noise(vae: AutoencoderKL, pictures: list[Tensor]) -> float:
    """Of decoded posterior means, in dB, for values in [0, 1]."""
    errors = [
        (vae.decode(vae.encode(batch).latent_dist.mean).sample.float().clamp(-1, 1) - batch.float())
        .square()
        .mean()
        for batch in pictures
    ]
    return float(-10 * torch.log10(torch.stack(errors).mean() / 4))


def _finish(
    recipe: AutoencoderRecipe,
    running: Running,
    average: Mapping[str, Tensor],
    scenes: PackedScenes,
    folder: Path,
) -> None:
    """Fold the averaged weights in float32, round them as they are published, measure, save."""
    vae = build_autoencoder(recipe.architecture).to(running.device)
    vae.load_state_dict(dict(average))
    size = recipe.architecture.image_size
    pictures = [render(scenes[number].to(running.device), size) for number in MEASURING_BATCHES]
    fold_scale(vae, *latent_moments(vae, pictures))
    cast_parameters(vae.requires_grad_(False), torch.bfloat16)
    rounded = [batch.to(torch.bfloat16) for batch in pictures]
    mean, deviation = latent_moments(vae, rounded)
    logger.info(
        "%.2f dB on %d unseen scenes; latent means up to %.3f, deviations %.3f to %.3f",
        peak_signal_to_noise(vae, rounded),
        len(rounded) * len(rounded[0]),
        float(mean.abs().max()),
        float(deviation.min()),
        float(deviation.max()),
    )
    vae.save_pretrained(folder)
