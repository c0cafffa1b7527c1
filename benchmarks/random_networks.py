"""The network of the published size with random weights, ours and diffusers', made on the device without a detour.

In: a class, a dtype. Out: a network without storage, and the same with weights. Cut up by FSDP2 in between, no process
ever holds more than its pieces.
"""

from typing import Any

import torch
from diffusers import Kandinsky5Transformer3DModel as PeerNetwork
from torch import nn

from kandinsky5.model.transformer import Kandinsky5Transformer3DModel as OurNetwork
from kandinsky5.train.tuning.holders import local

__all__ = ["OurNetwork", "PeerCall", "PeerNetwork", "build", "filled", "restore_tables"]

PUBLISHED = {
    "in_visual_dim": 16,
    "out_visual_dim": 16,
    "in_text_dim": 3584,
    "in_text_dim2": 768,
    "time_dim": 512,
    "model_dim": 2560,
    "ff_dim": 10240,
    "num_text_blocks": 2,
    "num_visual_blocks": 50,
    "axes_dims": (32, 48, 48),
}
TINY = {
    **PUBLISHED,
    "in_text_dim": 64,
    "in_text_dim2": 48,
    "time_dim": 32,
    "model_dim": 64,
    "ff_dim": 128,
    "num_visual_blocks": 2,
    "axes_dims": (8, 12, 12),
}


def build(kind: Any, dtype: torch.dtype, *, tiny: bool) -> Any:
    """A network without storage, in the dtypes in which a checkpoint is loaded."""
    with torch.device("meta"):
        network = kind(**(TINY if tiny else PUBLISHED))
    precise = set(OurNetwork._keep_in_fp32_modules)
    for name, parameter in network.named_parameters():
        if not precise & set(name.split(".")):
            parameter.data = parameter.data.to(dtype)
    return network


def filled(network: Any, device: torch.device) -> Any:
    """The network on the device with weights N(0, 0.02), also where it would start from zero; norms of one."""
    network.to_empty(device=device)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            piece = local(parameter)
            piece.fill_(1.0) if name.endswith("norm.weight") else piece.normal_(std=0.02)
    return network


def restore_tables(network: Any, device: torch.device) -> None:
    """Give diffusers' network the tables that it computes when it is built, from one with next to no layers."""
    few = {"num_text_blocks": 0, "num_visual_blocks": 0, "ff_dim": 8}
    small = PeerNetwork(**{**dict(network.config), **few})
    for name, table in small.named_buffers():
        network.get_buffer(name).copy_(table)
    network.time_embeddings.freqs = small.time_embeddings.freqs.to(device)


class PeerCall(nn.Module):
    """Diffusers' network under our call, which it takes but for the mask of padding."""

    def __init__(self, network: Any):
        super().__init__()
        self.network = network
        self.config = network.config

    def forward(self, encoder_attention_mask: None = None, **arguments: Any) -> Any:
        """See `Kandinsky5Transformer3DModel.forward`; latents in the dtype of its layers, which it does not cast."""
        arguments["hidden_states"] = arguments["hidden_states"].to(torch.bfloat16)
        arguments["timestep"] = arguments["timestep"].to(torch.bfloat16)
        return self.network(**arguments)

    def enable_gradient_checkpointing(self, function: Any = None) -> None:
        """As the network's."""
        self.network.enable_gradient_checkpointing(function)
