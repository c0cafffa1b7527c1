"""Whether our network and diffusers' compute the same with the same tensors, at any size and in any precision.

In: our network, loaded. Out: how far both are from diffusers' network in float32. The one place of the package that
asks the class it replaces. Refuses to know: folders, and what a difference means for a checkpoint.

Two networks in bfloat16 differ by their rounding, and how much depends on depth, width and weights: a fixed limit that
the embedded model (12 blocks) keeps is none that 52 blocks keep. So the third network is the yardstick: what rounding
does to diffusers' own network may be done to ours, and no more.
"""

import copy
import warnings
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from kandinsky5.errors import CheckpointError
from kandinsky5.model.transformer import Kandinsky5Transformer3DModel

ROUNDING: Final = 1.5
"""Our distance to float32 as a multiple of diffusers' own. Measured: 0.94 to 1.04, in bfloat16 and float16, for 10 and
50 blocks of random weights (N(0, 0.02) and N(0, 0.05)), 256 and 512 wide, on a CPU, where diffusers' own distance in
bfloat16 is 0.010 at 10 blocks and 0.020 at 50; `pytest -m gpu -rP tests/edges/test_verify_gpu.py` has 1280."""

YARDSTICK: Final = 0.01
"""Added to that: diffusers 0.42.1 rounds rotated queries and keys to bfloat16 even in float32, so the yardstick itself
is off (1e-4 to 4e-4 for those random networks, 8e-4 for the embedded model). In float32 this is the whole limit."""

MEANINGLESS: Final = 0.3
"""Where diffusers' own rounding moves the velocity by more than this, agreement would prove nothing."""

LATENT_SIDE: Final = 16
TEXT_TOKENS: Final = 24
"""Sizes of the forward pass: small, so that a CPU has it in seconds."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Relative L2 distances of velocities to diffusers' in float32: ours and theirs, both in the dtype that runs."""

    ours: float
    theirs: float

    @property
    def limit(self) -> float:
        """What `ours` may be at most."""
        return ROUNDING * self.theirs + YARDSTICK


def has_peer() -> bool:
    """Whether this diffusers has a class to compare with."""
    import diffusers

    return hasattr(diffusers, "Kandinsky5Transformer3DModel")


def velocity(network: Kandinsky5Transformer3DModel) -> Tensor:
    """Our velocity of the drawn inputs, float32. Raises CheckpointError when it is not finite."""
    with torch.inference_mode():
        found = network(**_inputs(network)).sample.float()
    if not torch.isfinite(found).all():
        raise CheckpointError("The velocity of random latents has NaN or infinity.")
    return found


def measure(network: Kandinsky5Transformer3DModel) -> Agreement:
    """Run the three networks on one input.

    The tensors are shared, not copied; in float32 one block at a time is (0.5 GB of the published 118 M parameters a
    block), so this runs wherever the network does.
    """
    inputs, ours = _inputs(network), velocity(network)
    wide = {name: value.float() if name in _ROUNDED else value for name, value in inputs.items()}
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch remarks on how diffusers mixes dtypes
        peer = _peer(network)
        theirs = peer(**inputs).sample.float()
        truth = _in_float32(peer)(**wide).sample
    return Agreement(ours=_distance(ours, truth), theirs=_distance(theirs, truth))


def _distance(found: Tensor, truth: Tensor) -> float:
    return float((found - truth).norm() / truth.norm())


_ROUNDED: Final = ("hidden_states", "encoder_hidden_states", "pooled_projections")
"""Inputs that a network takes in the dtype it runs in."""


def _inputs(network: Kandinsky5Transformer3DModel) -> dict[str, Any]:
    """Inputs of the network, drawn on the CPU from seed 0: (1, 1, 16, 16, C) latents, 24 text tokens, t = 0.5."""
    generator = torch.Generator("cpu").manual_seed(0)
    config, dtype = network.config, dtype_of(network)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(network.device, dtype)

    _, rows, columns = config.patch_size
    return {
        "hidden_states": draw(1, 1, LATENT_SIDE, LATENT_SIDE, network.input_channels),
        "encoder_hidden_states": draw(1, TEXT_TOKENS, config.in_text_dim),
        "pooled_projections": draw(1, config.in_text_dim2),
        "timestep": torch.tensor([500.0], device=network.device),
        "visual_rope_pos": [
            torch.arange(n, device=network.device) for n in (1, LATENT_SIDE // rows, LATENT_SIDE // columns)
        ],
        "text_rope_pos": torch.arange(TEXT_TOKENS, device=network.device),
    }


def _peer(network: Kandinsky5Transformer3DModel) -> Any:
    """The class of diffusers around our tensors."""
    from accelerate import init_empty_weights  # type: ignore[import-untyped]
    from diffusers import Kandinsky5Transformer3DModel as Peer

    with init_empty_weights(include_buffers=False):
        peer = Peer.from_config(dict(network.config))
    peer.load_state_dict(network.state_dict(), assign=True)
    return peer.to(network.device).eval()


def _in_float32(peer: nn.Module) -> nn.Module:
    """The same network in float32; its blocks are copied when they run, and forgotten."""
    for name, child in list(peer.named_children()):
        if isinstance(child, nn.ModuleList):
            setattr(peer, name, nn.ModuleList(_Widened(block) for block in child))
        else:
            setattr(peer, name, copy.deepcopy(child).float())
    return peer


class _Widened(nn.Module):
    """A block that is float32 while it runs."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, *inputs: Any) -> Tensor:
        found: Tensor = copy.deepcopy(self.block).float()(*inputs)
        return found


def dtype_of(network: Kandinsky5Transformer3DModel) -> torch.dtype:
    """The dtype the blocks run in; time embedding and modulation may be wider."""
    return network.text_embeddings.norm.weight.dtype
