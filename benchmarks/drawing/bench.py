"""What the sections of `generate.py` share: settings, the network, the ways made so far, the truth, and how to measure.

Comes in: settings. Goes out: scenes, ways and numbers. Refuses to know: which sections there are.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from full_size_checkpoint import CLIP, TEXT, VAE, VISION
from torch import Tensor

from drawing.ledger import Ledger, median_seconds
from drawing.ways import Scene, Way, copied, full_size_network, ours, peer, tera_operations
from kandinsky5.model.graph import PLAIN_CALLS
from kandinsky5.pipelines import Kandinsky5T2IPipeline
from kandinsky5.placement import FLOAT8_MODES
from kandinsky5.variants import embedded_folder

TIMES = (900.0, 500.0, 100.0)
"""Where velocities are compared; bfloat16 holds them exactly, so that diffusers sees the same times."""

NOISES = 3
"""As many scenes at each of those times: two formats of the same error differ by a tenth at one."""

FEW = PLAIN_CALLS + 1
"""Steps of a loop that stands for a longer one: enough for graphs to be captured in the first."""

LIGHT_TOKENS = 1024
FEW_LIGHT = 10
"""The same up to so many visual tokens, where what is made once for all steps of a run would weigh more."""


@dataclass(kw_only=True)
class Bench:
    """One run of the benchmark."""

    device: torch.device
    dtype: torch.dtype
    tiny: bool
    size: int
    tokens: int
    steps: int
    repeats: int
    truth_steps: int
    ledger: Ledger
    network: Any = None
    pipeline: Any = None
    true_velocities: list[Tensor] = field(default_factory=list)
    true_latents: Tensor | None = None
    ways: dict[str, Way] = field(default_factory=dict)

    def build(self) -> None:
        """The network; of the embedded model the whole pipeline."""
        if self.tiny:
            self.pipeline = embedded_pipeline(self.device, self.dtype)
            self.network = self.pipeline.transformer
        else:
            self.network = full_size_network(self.device, self.dtype)

    def scene(self, network: Any = None, **changes: Any) -> Scene:
        """The one that is measured, or a changed one."""
        chosen = {"width": self.size, "height": self.size, "tokens": self.tokens, **changes}
        return Scene.drawn(self.network if network is None else network, **chosen)

    def velocities(self, way: Way, like: Callable[[Scene], Scene] = lambda scene: scene) -> Iterator[Tensor]:
        """Of `NOISES` scenes at `TIMES`, as `truth` has them; `like` makes a scene what the way takes."""
        for noise in range(NOISES):
            scene = like(self.scene(noise=noise))
            yield from (way.velocity(scene, time) for time in TIMES)

    def way(self, name: str) -> Way:
        """A way, made when it is first asked for; exact ways share one network, float8 ways another."""
        if name not in self.ways:
            self.ways[name] = self._make(name)
        return self.ways[name]

    def _make(self, name: str) -> Way:
        mode, _, graphs = name.removeprefix("ours ").partition(" + ")
        if name.startswith("diffusers"):
            return peer(name, self.network, compiled="compiled" in name, torchao="torchao" in name)
        network = self.network
        if mode in FLOAT8_MODES:
            made = [way.network for key, way in self.ways.items() if key.startswith("ours fp8")]
            network = made[0] if made else copied(network)
        return ours(name, network, None if mode == "ordinary" else mode, graphs=graphs == "graphs")


def embedded_pipeline(device: torch.device, dtype: torch.dtype) -> Any:
    """The small model with its trained weights."""
    pipeline = Kandinsky5T2IPipeline.from_pretrained(embedded_folder(), dtype=dtype).to(device)
    pipeline.transformer.requires_grad_(False)
    return pipeline


def full_size_pipeline(bench: Bench) -> Any:
    """Encoders and autoencoder of the published sizes with drawn weights; the embedded model's tokenizers."""
    from diffusers import AutoencoderKL
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
    )

    small = Kandinsky5T2IPipeline.from_pretrained(embedded_folder())
    ordinary = torch.get_default_dtype()
    torch.set_default_dtype(bench.dtype)
    try:
        with torch.device(bench.device):
            config = Qwen2_5_VLConfig(
                text_config=dict(TEXT), vision_config=dict(VISION), tie_word_embeddings=False
            )
            encoder = Qwen2_5_VLForConditionalGeneration(config)
            clip = CLIPTextModel(CLIPTextConfig(**CLIP))
            vae = AutoencoderKL(**VAE)
    finally:
        torch.set_default_dtype(ordinary)
    return Kandinsky5T2IPipeline(
        transformer=bench.network,
        vae=vae.eval(),
        text_encoder=encoder.eval(),
        tokenizer=small.tokenizer,
        text_encoder_2=clip.eval(),
        tokenizer_2=small.tokenizer_2,
        scheduler=small.scheduler,
    )


def often(function: Callable[[], Any], bench: Bench) -> float:
    """Median seconds of a call that takes microseconds to milliseconds: of ten calls at a time."""

    def ten() -> None:
        for _ in range(10):
            function()

    return median_seconds(ten, bench.device, 3 if bench.tiny else 9, warm_ups=2) / 10


def distance(found: Tensor, expected: Tensor) -> float:
    """Relative L2; not a number if anything is not."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def work(bench: Bench, scene: Scene) -> float:
    """10^12 operations of one row."""
    return sum(tera_operations(bench.network.config, scene.tokens, scene.positive.text.shape[1])) * len(
        scene.latents
    )
