"""The plan: where each piece of a model is, in which format, and how much memory that takes.

A record and its words. Refuses to know: how it was chosen, and how it is carried out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

Origin = Literal["device", "host", "disk"]
"""Where weights wait: on the device for good, in page-locked host memory, or in the checkpoint's files."""

SMALL_SLOTS: Final = 2
"""Slots for modulation, for text blocks and for Qwen's vision blocks, where they come in turn."""

WAITS = {"device": "on the device", "host": "streamed from host memory", "disk": "streamed from disk"}


def in_words(amount: int) -> str:
    """Bytes as a person reads them."""
    return f"{amount / 1e9:.1f} GB" if amount >= 10**8 else f"{amount / 1e6:.1f} MB"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a pipeline is placed.

    device: where everything is computed.
    network, encoder: formats of the network's and of Qwen's weights (`memory.formats`).
    network_origin, encoder_origin: where those of their weights wait that are not on the device.
    blocks, resident_blocks: how many blocks the network has, and how many of them stay on the device
        (`memory.overlap.which_stay` says which).
    layers, resident_layers: the same of Qwen's layers.
    small_stream: modulation, text blocks and CLIP come and go as well.
    slots: blocks on the device at once of those that stream.
    tile: pixels of the autoencoder's tiles; None works on whole pictures.
    batched_guidance: both guidance branches in one forward pass.
    width, height, pictures, edits, text_tokens: of the largest request that is planned for, the longest prompt too.
    device_bytes: predicted peak of the device for that, without context and libraries; on the CPU of this process.
    host_bytes: predicted peak of host memory, anonymous and page-locked, on top of the process as it was.
    stages: device_bytes by stage.
    bytes_per_step: moved to the device in a step, on the mean of a run of 50.
    bytes_per_prompt: moved to encode the prompts of a call.
    seconds_per_step: estimate on the same mean; plans are compared by it.
    """

    device: str
    network: str
    encoder: str
    network_origin: Origin
    encoder_origin: Origin
    blocks: int
    resident_blocks: int
    layers: int
    resident_layers: int
    small_stream: bool
    slots: int
    tile: int | None
    batched_guidance: bool
    width: int
    height: int
    pictures: int
    edits: bool
    text_tokens: int
    device_bytes: int
    host_bytes: int
    bytes_per_step: int
    bytes_per_prompt: int
    seconds_per_step: float
    stages: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_resident(self) -> bool:
        """Whether nothing comes and goes."""
        return (
            self.resident_blocks == self.blocks and self.encoder_origin == "device" and not self.small_stream
        )

    def __str__(self) -> str:
        return "; ".join(self.lines)

    @property
    def lines(self) -> list[str]:
        """What was picked, in words."""
        streamed = self.blocks - self.resident_blocks
        network = f"network {self.network}, {self.resident_blocks} of {self.blocks} blocks on {self.device}"
        if streamed:
            network += f", {streamed} {WAITS[self.network_origin]} through {self.slots} slots"
        if self.small_stream:
            network += "; modulation, text blocks and CLIP come and go too"
        encoder = f"Qwen2.5-VL {self.encoder}, "
        if 0 < self.resident_layers < self.layers:
            encoder += f"{self.resident_layers} of {self.layers} layers on {self.device}, the others "
        encoder += WAITS[self.encoder_origin]
        vae = "autoencoder whole" if self.tile is None else f"autoencoder in tiles of {self.tile} pixels"
        guidance = "guidance branches together" if self.batched_guidance else "guidance branches in turn"
        what = f"{self.pictures} of " if self.pictures > 1 else ""
        peak = f"predicted peak up to {in_words(self.device_bytes)} on {self.device}"
        if self.device != "cpu":
            peak += f" and {in_words(self.host_bytes)} of host memory"
        return [
            network,
            encoder,
            f"{vae}, {guidance}",
            f"{peak} for {what}{self.width}x{self.height}{', editing' if self.edits else ''}, "
            f"prompts up to {self.text_tokens} tokens",
            f"{in_words(self.bytes_per_step)} moved a step, {in_words(self.bytes_per_prompt)} a prompt",
        ]

    def to_dict(self) -> dict[str, Any]:
        """As a JSON object."""
        return {**vars(self), "stages": dict(self.stages)}
