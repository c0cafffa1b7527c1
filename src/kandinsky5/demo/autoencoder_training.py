"""Trains the embedded model's autoencoder on endless rendered scenes.

Comes in: a recipe and a working folder. Goes out: an `AutoencoderKL` folder whose latents have mean 0 and deviation 1
in every channel, with its quality on scenes it has not seen. It does not know of text or of the network that will live
in those latents. What was tried, with figures: docs/decisions/autoencoder.md.
"""

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from kandinsky5.demo.architecture import Architecture, build_autoencoder, cast_parameters
from kandinsky5.demo.autoencoder_quality import measure, near_things, save_quality, save_reconstructions
from kandinsky5.demo.renderer import render
from kandinsky5.demo.running import CONVOLUTIONS, Remarks, Running
from kandinsky5.demo.scene_batches import PackedScenes, batches_from
from kandinsky5.demo.tokenizers import PARTS
from kandinsky5.train.lesson import PlainLesson
from kandinsky5.train.replicas import ALONE
from kandinsky5.train.settings import OptimiserSettings, Plan, RunSettings, WatchSettings
from kandinsky5.train.training import Training
from kandinsky5.train.tuning.holders import ReplicatedWeights

logger = logging.getLogger(__name__)

FOLDER = Path("autoencoder")
AUTOENCODER = PARTS / "vae"
QUALITY = FOLDER / "quality.json"
SHEET = "autoencoder.png"
SHEET_PICTURES = 8
MEASURING_BATCHES = range(10**9, 10**9 + 8)
UNSEEN_BATCHES = range(10**9 + 8, 10**9 + 16)
"""Batches for the fold's statistics and for quality; training never counts this far."""

TAIL = 3.0
"""Latents this far from zero, in deviations, are rare in a normal distribution: 0.3 %."""

COPY_NOISE = 0.1
"""What sets copies of a channel apart at the start, in the deviation that would keep a signal's variance."""


OPTIMISER = OptimiserSettings(rate=5e-4, weight_decay=0.01, warmup=100, decay_share=0.5)
RUN = RunSettings(
    steps=20_000, batch=8, micro_batch=8, seed=5, ema=0.999, checkpointing=False, save_every=2000
)


@dataclass(frozen=True, kw_only=True)
class AutoencoderRecipe:
    """What decides the result, and when it pauses.

    `things_share` of the loss is about pixels near things, the rest about flat ground; the other weights belong to the
    parts of `picture_losses` and `latent_losses`. `latent_noise` is added to the latents, whose deviation is near 1.
    """

    architecture: Architecture = field(default_factory=Architecture)
    optimiser: OptimiserSettings = OPTIMISER
    run: RunSettings = RUN
    things_share: float = 0.6
    squared_weight: float = 2.0
    edge_weight: float = 1.0
    centre_weight: float = 0.02
    scale_weight: float = 0.02
    tail_weight: float = 0.02
    latent_noise: float = 0.1

    def plan(self, output: Path) -> Plan:
        """As the trainer takes it."""
        recipe = {**asdict(self), "run": self.run.recipe()}
        weights = {
            name: recipe.pop(name) for name, value in tuple(recipe.items()) if isinstance(value, float)
        }
        return Plan(
            output=output,
            optimiser=self.optimiser,
            run=self.run,
            recipe={**recipe, "loss": weights},
            watch=WatchSettings(log_every=100),
        )


def train_autoencoder(
    recipe: AutoencoderRecipe, running: Running, work: Path, out: Path | None = None
) -> bool:
    """Train, or continue; returns whether it is finished.

    Once it is, `work / AUTOENCODER` has the folded weights, `work / QUALITY` their figures, and `out / SHEET` (or
    beside the figures) pictures above their reconstructions, to be looked at before a network is trained on them.
    """
    scenes = PackedScenes(seed=recipe.run.seed, batch=recipe.run.micro_batch)
    torch.manual_seed(recipe.run.seed)
    vae = build_autoencoder(recipe.architecture).to(running.device)
    begin_transparent(vae)
    _fold(vae, scenes, recipe, running)
    cast_parameters(vae, running.dtype)
    training = Training(recipe.plan(work / FOLDER), AutoencoderLesson(vae, recipe, running), Remarks())
    finished = training.carry_out()
    if finished:
        vae = folded(recipe, running, training.stepper.learnt(), scenes)
        vae.save_pretrained(work / AUTOENCODER)
        show_quality(vae, recipe, running, work, out or work / FOLDER)
    return finished


class AutoencoderLesson(PlainLesson):
    """Endless scenes: draw, encode, add noise, decode, compare."""

    def __init__(self, vae: AutoencoderKL, recipe: AutoencoderRecipe, running: Running):
        self.weights = ReplicatedWeights(dict(vae.named_parameters()), ALONE)
        self.device = running.device
        self._vae = vae
        self._recipe = recipe
        self._running = running
        self._draw: Callable[[Tensor, int], Tensor] = render
        if running.compiles("renderer"):
            self._draw = torch.compile(render, dynamic=False)
        if running.compiles("autoencoder"):
            vae.encoder.compile(dynamic=False, options=CONVOLUTIONS)
            vae.decoder.compile(dynamic=False, options=CONVOLUTIONS)

    def batches(self, numbers: range) -> Iterable[Tensor]:
        """See `PackedScenes`."""
        run = self._recipe.run
        scenes = PackedScenes(seed=run.seed, batch=run.micro_batch)
        return batches_from(scenes, numbers, self._running.workers, pin=self._running.pins)

    def loss(self, batch: Tensor, number: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The weighted sum of the parts of `picture_losses` and `latent_losses`, and these."""
        recipe, running = self._recipe, self._running
        generator = running.generator(recipe.run.seed, number)
        packed = batch.to(running.device, non_blocking=True)
        pictures = self._draw(packed, recipe.architecture.image_size)
        latents = self._vae.encode(pictures.to(running.dtype)).latent_dist.mean.float()
        noise = torch.randn(latents.shape, generator=generator, device=latents.device)
        noisy = latents + recipe.latent_noise * noise
        decoded = self._vae.decode(noisy.to(running.dtype)).sample.float()
        weights = balanced_weights(near_things(pictures, packed), recipe.things_share)
        parts = picture_losses(pictures, decoded, weights) | latent_losses(latents)
        loss = (
            parts["pixels"]
            + recipe.squared_weight * parts["squares"]
            + recipe.edge_weight * parts["edges"]
            + recipe.centre_weight * parts["centre"]
            + recipe.scale_weight * parts["scale"]
            + recipe.tail_weight * parts["tails"]
        )
        return loss, {**parts, "loss": loss}


def balanced_weights(things: Tensor, share: float) -> Tensor:
    """Weights of pixels (B, 1, S, S), of mean 1, that give pixels marked in `things` this share of the sum."""
    fraction = things.float().mean().clamp(1e-6, 1 - 1e-6)
    return torch.where(things, share / fraction, (1 - share) / (1 - fraction))


def picture_losses(pictures: Tensor, decoded: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Errors of decoded pictures (B, 3, S, S) in [-1, 1], pixels weighted by (B, 1, S, S); float32 scalars.

    `pixels`: mean absolute error; `squares`: mean squared error, whose gradient is large where a colour is far off;
    `edges`: absolute error of the differences between neighbours, both ways.
    """
    error = decoded - pictures
    across, down = error.diff(dim=-1).abs(), error.diff(dim=-2).abs()
    return {
        "pixels": (weights * error.abs()).mean(),
        "squares": (weights * error.square()).mean(),
        "edges": (weights[..., 1:] * across).mean() + (weights[..., 1:, :] * down).mean(),
    }


def latent_losses(latents: Tensor) -> dict[str, Tensor]:
    """What latents (B, C, s, s) are kept from, so that a diffusion network can learn them; float32 scalars.

    `centre`: squared mean of each channel, which keeps the part of the fold that zero padding does not see
    (`fold_scale`) near zero; `scale`: mean square of each channel away from 1, which gives `latent_noise` its meaning;
    `tails`: squares of what exceeds `TAIL`.
    """
    return {
        "centre": latents.mean(dim=(0, 2, 3)).square().mean(),
        "scale": (latents.square().mean(dim=(0, 2, 3)) - 1).square().mean(),
        "tails": (latents.abs() - TAIL).clamp_min(0).square().mean(),
    }


@torch.no_grad()
def begin_transparent(vae: AutoencoderKL) -> None:
    """Start as a network that hands a blurred picture through, with certain latents.

    PyTorch's own start divides the variance of what passes a convolution by 3 and adds a random bias; after the eight
    between a picture and its latents the colours drown in what residual branches add, and training spends its first
    thousand steps on finding them again. Here every convolution outside residual branches begins as a copy of its
    channels (with both signs where there is room, so that SiLU loses nothing) and a little noise to tell copies apart;
    residual branches begin at zero. The posterior's variance is small and stays so: noise of a known size, added while
    training, does what a learnt variance would.
    """
    for name, module in vae.named_modules():
        if not isinstance(module, nn.Conv2d):
            continue
        if name.endswith(".conv2"):
            for parameter in module.parameters():
                nn.init.zeros_(parameter)
        elif "samplers" in name or name.endswith((".conv_in", ".conv_shortcut")):
            _copy_channels(module)
    channels = vae.config.latent_channels
    vae.encoder.conv_out.weight[channels:] = 0
    vae.encoder.conv_out.bias[channels:] = -10


def _copy_channels(convolution: nn.Conv2d) -> None:
    """Channel j becomes a copy of input channel `j mod inputs`, every second round negative; a stride averages."""
    outputs, inputs, size, _ = convolution.weight.shape
    for parameter in convolution.parameters():
        nn.init.zeros_(parameter)
    nn.init.normal_(convolution.weight, std=COPY_NOISE / math.sqrt(inputs * size * size))
    for output in range(outputs):
        sign = -1 if output // inputs % 2 else 1
        kernel = convolution.weight[output, output % inputs]
        if convolution.stride[0] == 2:  # diffusers pads such a convolution on the right and below
            kernel[:2, :2] += sign / 4
        else:
            kernel[size // 2, size // 2] += sign


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
def folded(
    recipe: AutoencoderRecipe, running: Running, average: Mapping[str, Tensor], scenes: PackedScenes
) -> AutoencoderKL:
    """The averaged weights, folded in float32 and rounded to bfloat16, as they are published."""
    vae = build_autoencoder(recipe.architecture).to(running.device)
    vae.load_state_dict(dict(average))
    _fold(vae, scenes, recipe, running)
    cast_parameters(vae.requires_grad_(False), torch.bfloat16)
    return vae


def _fold(vae: AutoencoderKL, scenes: PackedScenes, recipe: AutoencoderRecipe, running: Running) -> None:
    size = recipe.architecture.image_size
    pictures = [render(scenes[number].to(running.device), size) for number in MEASURING_BATCHES]
    fold_scale(vae, *latent_moments(vae, pictures))


def show_quality(
    vae: AutoencoderKL, recipe: AutoencoderRecipe, running: Running, work: Path, out: Path
) -> None:
    """Measure on scenes that no run sees: figures to `work / QUALITY` and the log, pictures to `out / SHEET`."""
    size = recipe.architecture.image_size
    scenes = PackedScenes(seed=recipe.run.seed, batch=recipe.run.micro_batch)
    unseen = [scenes[number].to(running.device) for number in UNSEEN_BATCHES]
    quality = measure(vae, unseen, size)
    logger.info("%s", quality)
    save_quality(quality, work / QUALITY)
    save_reconstructions(vae, unseen[0][:SHEET_PICTURES], size, out / SHEET)
    logger.info("%s", out / SHEET)
