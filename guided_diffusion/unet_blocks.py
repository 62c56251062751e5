"""What the U-Net is built from, under the published parameter names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from guided_diffusion.nn import SiLUInPlace, normalization, own_precision, zero_module


class Downsample(nn.Module):
    """Halve the resolution, by a convolution with stride 2 or by averaging."""

    def __init__(self, channels: int, use_conv: bool) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if use_conv else nn.AvgPool2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, C, H/2, W/2)."""
        return self.op(x)


class Upsample(nn.Module):
    """Double the resolution by repeating pixels, then convolve where use_conv says so."""

    def __init__(self, channels: int, use_conv: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if use_conv else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, C, 2H, 2W)."""
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class ResBlock(nn.Module):
    """Residual block of two convolutions that takes in the embedding between them.

    Args:
        channels, out_channels: width of its input and of its output.
        emb_channels: width of the embedding.
        resample: parameterless module that changes the resolution of both branches, or None.
        use_scale_shift_norm: the embedding scales and shifts the second normalisation's result instead of being
            added before it.
        use_checkpoint: recompute the activations in the backward pass.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        emb_channels: int,
        *,
        dropout: float = 0.0,
        resample: nn.Module | None = None,
        use_scale_shift_norm: bool = False,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.resample = resample or nn.Identity()
        self.use_scale_shift_norm = use_scale_shift_norm
        self.use_checkpoint = use_checkpoint
        self.in_layers = nn.Sequential(
            normalization(channels), SiLUInPlace(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        emb_width = 2 * out_channels if use_scale_shift_norm else out_channels
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, emb_width))
        self.out_layers = nn.Sequential(
            normalization(out_channels),
            SiLUInPlace(),
            nn.Dropout(dropout),
            zero_module(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        same = channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        """(N, channels, H, W) and (N, emb_channels) -> (N, out_channels, H', W')."""
        return _checkpointed(self.use_checkpoint, self._forward, x, emb)

    def _forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        norm, activation, conv = self.in_layers
        h = conv(self.resample(activation(norm(x))))
        with own_precision(x):
            emb = self.emb_layers(emb)
        norm, activation, dropout, conv = self.out_layers
        if self.use_scale_shift_norm:
            scale, shift = emb.chunk(2, dim=1)
            h = norm(h, scale, shift)
        else:
            h = norm(h + emb.to(h.dtype)[:, :, None, None])
        return self.skip_connection(self.resample(x)) + conv(dropout(activation(h)))


class AttentionBlock(nn.Module):
    """Self-attention between all positions, with a residual connection.

    Args:
        num_heads: heads, each of channels // num_heads channels.
        new_order: split the channels of qkv into q, k, v and then into heads, instead of heads first.
        use_checkpoint: recompute the activations in the backward pass.
    """

    def __init__(self, channels: int, num_heads: int, *, new_order: bool = False, use_checkpoint: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.new_order = new_order
        self.use_checkpoint = use_checkpoint
        self.norm = normalization(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zero_module(nn.Conv1d(channels, channels, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        return _checkpointed(self.use_checkpoint, self._forward, x)

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        n, channels, height, width = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (N, T, C), T = H·W
        # A 1x1 convolution is a matrix product over channels; written so, the heads are views: nothing is copied.
        qkv = F.linear(tokens, self.qkv.weight.squeeze(-1), self.qkv.bias)  # (N, T, 3C)
        if self.new_order:
            q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).unbind(2)  # (N, T, heads, ch)
        else:
            q, k, v = qkv.unflatten(-1, (self.num_heads, 3, -1)).unbind(3)
        # Its scale ch^(-1/2) is the published ch^(-1/4) on q and on k.
        h = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        h = h.transpose(1, 2).flatten(2)  # (N, T, C)
        h = F.linear(h, self.proj_out.weight.squeeze(-1), self.proj_out.bias)
        return x + h.transpose(1, 2).reshape(n, channels, height, width)


class EmbedSequential(nn.Sequential):
    """A sequence whose residual blocks are given the embedding."""

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        """Run the layers on x (N, C, H, W) with emb (N, E)."""
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x


@dataclass(frozen=True, kw_only=True)
class BlockFactory:
    """Makes the blocks of one network: what they have in common, said once.

    Attributes:
        emb_channels: width of the embedding.
        conv_resample: Downsample and Upsample convolve.
        resblock_updown: residual blocks change the resolution instead of Downsample and Upsample.
        num_head_channels: channels of an attention head; -1: the number of heads decides.
        dropout, use_scale_shift_norm, use_checkpoint, use_new_attention_order: see ResBlock and AttentionBlock.
    """

    emb_channels: int
    dropout: float
    conv_resample: bool
    resblock_updown: bool
    use_scale_shift_norm: bool
    use_checkpoint: bool
    num_head_channels: int
    use_new_attention_order: bool

    def residual(self, width: int, out_width: int, resample: nn.Module | None = None) -> ResBlock:
        """A residual block from one width to another, changing the resolution when told how."""
        return ResBlock(
            width,
            out_width,
            self.emb_channels,
            dropout=self.dropout,
            resample=resample,
            use_scale_shift_norm=self.use_scale_shift_norm,
            use_checkpoint=self.use_checkpoint,
        )

    def attention(self, width: int, num_heads: int) -> AttentionBlock:
        """An attention block; raises ValueError when its heads do not divide the width."""
        by_size = self.num_head_channels != -1
        divisor = self.num_head_channels if by_size else num_heads
        if divisor <= 0 or width % divisor:
            flag = "--num_head_channels" if by_size else "--num_heads (or --num_heads_upsample)"
            raise ValueError(f"{flag} {divisor} does not divide the {width} channels of an attention block")
        return AttentionBlock(
            width,
            width // divisor if by_size else num_heads,
            new_order=self.use_new_attention_order,
            use_checkpoint=self.use_checkpoint,
        )

    def down(self, width: int) -> nn.Module:
        """A block that halves the resolution."""
        if self.resblock_updown:
            return self.residual(width, width, nn.AvgPool2d(2))
        return Downsample(width, self.conv_resample)

    def up(self, width: int) -> nn.Module:
        """A block that doubles the resolution."""
        if self.resblock_updown:
            return self.residual(width, width, nn.Upsample(scale_factor=2, mode="nearest"))
        return Upsample(width, self.conv_resample)


def _checkpointed(enabled: bool, function: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
    """function(*inputs), its activations recomputed in the backward pass when enabled."""
    if enabled and torch.is_grad_enabled():
        return checkpoint(function, *inputs, use_reentrant=False)
    return function(*inputs)
