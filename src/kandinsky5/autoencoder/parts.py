"""The parts of an autoencoder of diffusers with channels last and fewer passes over memory.

Each is its parent's class with another `forward`, so that an instance becomes one by its `__class__` alone and keeps
weights, names, hooks and children. With gradients, or compiled, each does what its parent does. Layers are called as
modules, so that offload hooks on them fire. Refuses to know: which instances become what (`preparing`).
"""

from typing import Any

import torch
from diffusers.models.autoencoders.vae import Decoder, Encoder
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from kandinsky5.autoencoder.group_norm import goes_ordinary_way, group_norm


class FusedGroupNorm(nn.GroupNorm):
    """Group norm, and on request SiLU of it in the same pass."""

    def forward(self, input: Tensor, silu: bool = False) -> Tensor:
        """(N, C, ...) -> (N, C, ...), same dtype."""
        return group_norm(input, self.num_groups, self.weight, self.bias, self.eps, silu=silu)


class FusedResnetBlock(ResnetBlock2D):
    """Two convolutions of what is normed and activated, added to what came in."""

    def forward(self, input_tensor: Tensor, temb: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        """(N, C, H, W) -> (N, C', H, W); there is no `temb` in an autoencoder."""
        if goes_ordinary_way():
            return super().forward(input_tensor, temb, *args, **kwargs)
        hidden = self.conv1(self.norm1(input_tensor, silu=True))
        hidden = self.conv2(self.norm2(hidden, silu=True))
        shortcut = input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor)
        return hidden.add_(shortcut)


class FusedUpsample(Upsample2D):
    """Each pixel four times, then a convolution."""

    def forward(
        self, hidden_states: Tensor, output_size: int | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """(N, C, H, W) -> (N, C', 2 H, 2 W)."""
        if goes_ordinary_way() or output_size is not None:
            return super().forward(hidden_states, output_size, *args, **kwargs)
        return self.conv(doubled(hidden_states))


class ChannelsLastEncoder(Encoder):
    """Pixels to moments of latents."""

    def forward(self, sample: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 2 C, H / 8, W / 8), in the usual order in memory."""
        if goes_ordinary_way():
            return super().forward(sample)
        hidden = self.conv_in(sample.contiguous(memory_format=torch.channels_last))
        for block in self.down_blocks:
            hidden = block(hidden)
        hidden = self.mid_block(hidden)
        return self.conv_out(self.conv_norm_out(hidden, silu=True)).contiguous()


class ChannelsLastDecoder(Decoder):
    """Latents to pixels."""

    def forward(self, sample: Tensor, latent_embeds: Tensor | None = None) -> Tensor:
        """(N, C, H / 8, W / 8) -> (N, 3, H, W), in the usual order in memory."""
        if goes_ordinary_way():
            return super().forward(sample, latent_embeds)
        hidden = self.mid_block(self.conv_in(sample.contiguous(memory_format=torch.channels_last)))
        for block in self.up_blocks:
            hidden = block(hidden)
        return self.conv_out(self.conv_norm_out(hidden, silu=True)).contiguous()


def doubled(x: Tensor) -> Tensor:
    """Each pixel four times, (N, C, H, W) -> (N, C, 2 H, 2 W) with channels last.

    A copy whose source is read four times. torch's own way with channels last refuses 2^31 elements, which eight
    pictures of 1024 x 1024 have, and divides for each element.
    """
    rows = x.permute(0, 2, 3, 1).contiguous()
    if rows.shape[-1] * rows.element_size() % 8 == 0:
        return _doubled(rows.view(torch.int64)).view(x.dtype).permute(0, 3, 1, 2)  # 8 bytes at a time
    return _doubled(rows).permute(0, 3, 1, 2)


def _doubled(rows: Tensor) -> Tensor:
    N, H, W, C = rows.shape
    return rows[:, :, None, :, None].expand(N, H, 2, W, 2, C).reshape(N, 2 * H, 2 * W, C)
