"""The networks that `generate.py` compares: ours by mode and diffusers' by what its users do, with the same weights.

Comes in: a network of ours. Goes out: ways, each of which takes a scene from noise to latents, or gives one velocity.
Weights are shared wherever a way does not change them. Refuses to know: what is timed, and when.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.models.transformers.transformer_kandinsky import Kandinsky5Transformer3DModel as Peer
from full_size_checkpoint import NETWORK
from torch import Tensor, nn

from kandinsky5.denoise import Run, denoise, set_times
from kandinsky5.model.transformer import Kandinsky5Transformer3DModel
from kandinsky5.placement import use_mode
from kandinsky5.records import Conditioning

GUIDANCE = 3.5
SHIFT = 3.0


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a run starts from: latents (B, 1, h, w, C) float32, prompts of B rows, and a source for editing.

    apart: both guidance branches in a forward pass each, where ours would put them into one.
    """

    latents: Tensor
    positive: Conditioning
    negative: Conditioning
    source: Tensor | None = None
    apart: bool = False

    @classmethod
    def drawn(
        cls,
        network: Any,
        *,
        width: int,
        height: int,
        tokens: int,
        negative_tokens: int | None = None,
        images: int = 1,
        apart: bool = False,
        noise: int = 0,
    ) -> "Scene":
        """Random: no value is zero, no two rows are the same. The negative prompt is as long unless it is said.

        `noise` says which of the scenes of that size.
        """
        config, device = network.config, network.device
        generator = torch.Generator(device).manual_seed(width + height + 10**6 * noise)

        def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.randn(shape, generator=generator, device=device).to(torch.bfloat16).to(dtype)

        def prompts(length: int) -> Conditioning:
            return Conditioning(
                text=draw(images, length, config.in_text_dim, dtype=network.dtype),
                mask=torch.ones(images, length, dtype=torch.bool, device=device),
                pooled=draw(images, config.in_text_dim2, dtype=network.dtype),
            )

        shape = (images, 1, height // 8, width // 8)
        latents = draw(*shape, config.out_visual_dim)
        source = draw(*shape, config.out_visual_dim + 1) if config.visual_cond else None
        positive, negative = prompts(tokens), prompts(negative_tokens or tokens)
        return cls(latents=latents, positive=positive, negative=negative, source=source, apart=apart)

    @property
    def tokens(self) -> int:
        """Visual tokens of an image."""
        return self.latents.shape[2] * self.latents.shape[3] // 4

    def run(self) -> Run:
        """Of ours."""
        return Run(
            latents=self.latents,
            positive=self.positive,
            negative=self.negative,
            guidance=GUIDANCE,
            source=self.source,
            batched_guidance=not self.apart,
        )


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to evaluate the network.

    loop: (scene, steps) -> latents after so many steps; two rows an image and step.
    velocity: (scene, time in [0, 1000]) -> velocity of the positive prompt.
    """

    name: str
    network: nn.Module
    loop: Callable[[Scene, int], Tensor]
    velocity: Callable[[Scene, float], Tensor]


def full_size_network(
    device: torch.device, dtype: torch.dtype, **changes: Any
) -> Kandinsky5Transformer3DModel:
    """The published shape with drawn weights, modulation among them; stored as `from_pretrained(dtype=...)` does."""
    with torch.device("meta"):
        network = Kandinsky5Transformer3DModel(**{**NETWORK, **changes})
    kept = network._keep_in_fp32_modules
    for name, module in network.named_modules():
        if not list(module.children()):
            wide = any(part in kept for part in name.split("."))
            module.to(torch.float32 if wide else dtype)
    network.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.normal_(0, 0.1 if name.endswith("norm.weight") else 0.02, generator=generator)
            if name.endswith("norm.weight"):
                parameter.add_(1)
    return network.eval().requires_grad_(False)


def editing_network(network: Kandinsky5Transformer3DModel) -> Kandinsky5Transformer3DModel:
    """The same with an editing checkpoint's first layer; all other weights are shared."""
    with torch.device("meta"):
        other = Kandinsky5Transformer3DModel(**{**network.config, "visual_cond": True})
    old = network.visual_embeddings.in_layer.weight
    first = other.visual_embeddings.in_layer.weight
    weights = {
        **network.state_dict(),
        "visual_embeddings.in_layer.weight": torch.randn(first.shape, device=old.device).to(old.dtype) * 0.02,
    }
    other.load_state_dict(weights, assign=True)
    return other.eval().requires_grad_(False)


def ours(name: str, network: Kandinsky5Transformer3DModel, mode: str | None, *, graphs: bool = False) -> Way:
    """A mode of ours. Exact modes share the network: the one that was made last is what it runs in."""
    use_mode(network, mode, graphs=graphs)
    path = network.fast_path

    def loop(scene: Scene, steps: int) -> Tensor:
        network.fast_path = path
        return denoise(scene.run(), transformer=network, scheduler=scheduler(steps, network.device))

    @torch.no_grad()
    def velocity(scene: Scene, time: float) -> Tensor:
        network.fast_path = path
        return network(**arguments(scene.run().network_input, scene.positive, time), return_dict=False)[0]

    return Way(name=name, network=network, loop=loop, velocity=velocity)


def copied(network: Kandinsky5Transformer3DModel) -> Kandinsky5Transformer3DModel:
    """With weights of its own, in no mode."""
    path, network.fast_path = network.fast_path, None
    other = copy.deepcopy(network)
    network.fast_path = path
    return other


def peer(
    name: str, network: Kandinsky5Transformer3DModel, *, compiled: bool = False, torchao: bool = False
) -> Way:
    """The same weights in diffusers' class: one forward a branch, latents in the network's dtype, as its pipeline."""
    with init_empty_weights(include_buffers=False):
        other = Peer(**{k: v for k, v in network.config.items() if not k.startswith("_")})
    other.load_state_dict(network.state_dict(), assign=True)
    other = other.eval().requires_grad_(False)
    for module in other.modules():  # tables that are no parameters
        for key, buffer in module.named_buffers(recurse=False):
            setattr(module, key, buffer.to(network.device))
    if torchao:
        to_torchao_float8(other)
    if compiled:
        other.compile_repeated_blocks()
    dtype = network.dtype

    def branch(latents: Tensor, prompts: Conditioning, time: Tensor) -> Tensor:
        return other(**arguments(latents.to(dtype), prompts, time.to(dtype)), return_dict=False)[0]

    @torch.no_grad()
    def loop(scene: Scene, steps: int) -> Tensor:
        made, latents = scheduler(steps, network.device), scene.latents.to(dtype)
        for t in made.timesteps:
            fed = latents if scene.source is None else torch.cat([latents, scene.source.to(dtype)], dim=-1)
            times = t.expand(len(latents))
            positive, negative = branch(fed, scene.positive, times), branch(fed, scene.negative, times)
            velocity = negative + GUIDANCE * (positive - negative)
            latents = made.step(velocity, t, latents, return_dict=False)[0]
        return latents

    @torch.no_grad()
    def velocity(scene: Scene, time: float) -> Tensor:
        times = torch.full((len(scene.latents),), time, device=network.device)
        return branch(scene.run().network_input, scene.positive, times)

    return Way(name=name, network=other, loop=loop, velocity=velocity)


def to_torchao_float8(network: nn.Module) -> None:
    """Row-wise float8 by torchao on the products of the visual blocks, as a user of diffusers would put it in."""
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, quantize_

    for block in network.visual_transformer_blocks:
        quantize_(
            block,
            Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()),
            filter_fn=lambda module, name: isinstance(module, nn.Linear) and "modulation" not in name,
        )


def arguments(latents: Tensor, prompts: Conditioning, time: float | Tensor) -> dict[str, Any]:
    """Of either class's `forward`."""
    device = latents.device
    grid = (latents.shape[1], latents.shape[2] // 2, latents.shape[3] // 2)
    times = time if isinstance(time, Tensor) else torch.full((len(latents),), float(time), device=device)
    return {
        "hidden_states": latents,
        "encoder_hidden_states": prompts.text,
        "timestep": times,
        "pooled_projections": prompts.pooled,
        "visual_rope_pos": [torch.arange(n, device=device) for n in grid],
        "text_rope_pos": torch.arange(prompts.text.shape[1], device=device),
    }


def scheduler(steps: int, device: torch.device) -> FlowMatchEulerDiscreteScheduler:
    """At the authors' times."""
    made = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    set_times(made, steps, device)
    return made


def in_float32(scene: Scene) -> Scene:
    """For the network that the others' errors are measured by; the values are the same."""
    return replace(
        scene,
        positive=scene.positive.to(dtype=torch.float32),
        negative=scene.negative.to(dtype=torch.float32),
    )


def tera_operations(config: Any, visual: int, text: int) -> tuple[float, float]:
    """10^12 operations of one row's forward: linear layers and attention."""
    D, F = config.model_dim, config.ff_dim
    blocks = 2 * visual * (6 * D * D + 2 * D * F) + 2 * text * 2 * D * D
    words = 2 * text * (4 * D * D + 2 * D * F)
    linear = config.num_visual_blocks * blocks + config.num_text_blocks * words
    attention = config.num_visual_blocks * 4 * D * (visual * visual + visual * text)
    return linear / 1e12, (attention + config.num_text_blocks * 4 * D * text * text) / 1e12
