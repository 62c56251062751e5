"""What the U-Net is built from, and small pieces that losses and training share, under the published names."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""What a network can compute in."""

linear, SiLU = nn.Linear, nn.SiLU
"""Torch's own, under the names that scripts import from here."""


class GroupNorm32(nn.GroupNorm):
    """Group normalisation with the statistics and arithmetic of its parameters (float32), whatever the input's type."""

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """Normalise x (N, C, ...), the result in the type of x; then times 1 + scale plus shift, where they are given.

        scale, shift: (N, C), or (1, C) for all images: then they join the norm's own parameters and cost nothing.
        """
        weight, bias = self.weight, self.bias
        if scale is not None and len(scale) == 1:
            weight, bias = weight * (1 + scale[0]), torch.addcmul(shift[0], bias, 1 + scale[0])
            scale = None
        on_cpu, dtype = x.device.type == "cpu", x.dtype
        if not on_cpu and not torch.is_grad_enabled():
            weight, bias = weight.to(dtype), bias.to(dtype)  # the kernel computes in float32 inside
        elif not on_cpu or x.shape[2:].numel() < 1024:
            x = x.to(weight.dtype)
        # else the CPU's kernel takes half-precision features and float32 parameters; it pays from 1024 pixels: on
        # fewer, channels-last, it is five times slower than casts (torch 2.15)
        y = F.group_norm(x, self.num_groups, weight, bias, self.eps).to(dtype)
        if scale is None:
            return y
        scale, shift = (values.to(dtype)[..., None, None] for values in (scale, shift))
        return torch.addcmul(shift, y, 1 + scale)


class SiLUInPlace(nn.SiLU):
    """SiLU of an intermediate result: where no gradient is needed, it takes that result's memory."""

    def forward(self, x: Tensor) -> Tensor:
        """x · sigmoid(x), of any shape."""
        return F.silu(x, inplace=not torch.is_grad_enabled())


def own_precision(x: Tensor) -> torch.autocast:
    """A context in which layers compute in the type of their weights, whatever torch.autocast says around it.

    For linear layers and head, float32 in half precision too: the head's gradient times 2^20 is no float16.
    """
    return torch.autocast(x.device.type, enabled=False)


def normalization(channels: int, groups: int = 32, eps: float = 1e-5) -> GroupNorm32:
    """The group normalisation of the U-Net."""
    return GroupNorm32(groups, channels, eps=eps)


def conv_nd(dims: int, *args: Any, **kwargs: Any) -> nn.Module:
    """A convolution over signals (dims 1), images (2) or volumes (3)."""
    return {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims](*args, **kwargs)


def avg_pool_nd(dims: int, *args: Any, **kwargs: Any) -> nn.Module:
    """Average pooling over signals (dims 1), images (2) or volumes (3)."""
    return {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}[dims](*args, **kwargs)


def zero_module(module: nn.Module) -> nn.Module:
    """Set a module's parameters to zero and return it."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


@torch.no_grad()
def scale_module(module: nn.Module, scale: float) -> nn.Module:
    """Multiply a module's parameters by a number and return it."""
    for parameter in module.parameters():
        parameter.mul_(scale)
    return module


@torch.no_grad()
def update_ema(target_params: Iterable[Tensor], source_params: Iterable[Tensor], rate: float = 0.99) -> None:
    """Move averaged parameters towards current ones: target = rate · target + (1 - rate) · source."""
    torch._foreach_lerp_(list(target_params), list(source_params), 1 - rate)


def checkpoint(
    func: Callable[..., Any], inputs: Sequence[Any], params: Iterable[Tensor] = (), flag: bool = True
) -> Any:
    """func(*inputs); with flag, its activations are recomputed in the backward pass instead of kept.

    params: accepted as published; the parameters that func uses get their gradients without being listed.
    """
    if flag and torch.is_grad_enabled():
        return recomputed(func, *inputs, use_reentrant=False)
    return func(*inputs)


def timestep_embedding(
    timesteps: Tensor, dim: int, max_period: float = 10000, *, sin_first: bool = False, freq_shift: float = 0.0
) -> Tensor:
    """Sinusoidal embedding cat(cos, sin)(t · max_period^(-k/half)), k = 0 … half-1, half = dim // 2.

    Args:
        timesteps: (N,) integers or reals.
        sin_first: cat(sin, cos) instead. freq_shift: the exponent is -k / (half - freq_shift).

    Returns (N, dim) in float32; an odd dim ends in a column of zeros (Vaswani et al. 2017, section 3.5).
    """
    half = dim // 2
    k = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    angles = timesteps[:, None].float() * torch.exp(-math.log(max_period) / (half - freq_shift) * k)
    halves = (angles.sin(), angles.cos()) if sin_first else (angles.cos(), angles.sin())
    embedding = torch.cat(halves, dim=-1)
    return F.pad(embedding, (0, 1)) if dim % 2 else embedding


def mean_flat(tensor: Tensor) -> Tensor:
    """Mean over all but the first dimension: (N, ...) -> (N,)."""
    return tensor.flatten(1).mean(dim=1)


def require_images(dims: int) -> None:
    """Raise ValueError for signals and volumes."""
    if dims != 2:
        raise ValueError(f"dims is {dims}: this network is for images, dims 2")


class TimestepBlock(nn.Module):
    """A module whose forward takes the embedding (N, E) beside the features (N, C, H, W)."""


class TimestepEmbedSequential(nn.Sequential, TimestepBlock):
    """A sequence in which those that take the embedding are given it."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Run the layers on x (N, C, H, W) with emb (N, E)."""
        for layer in self:
            x = layer(x, emb) if isinstance(layer, TimestepBlock) else layer(x)
        return x


class Downsample(nn.Module):
    """Halve the resolution, by a convolution with stride 2 or by averaging.

    pad_end: the convolution sees a border of zeros below and on the right only, instead of all around.
    """

    def __init__(
        self, channels: int, use_conv: bool, dims: int = 2, out_channels: int | None = None, *, pad_end: bool = False
    ) -> None:
        super().__init__()
        require_images(dims)
        self.pad_end = pad_end
        self.op = nn.AvgPool2d(2)
        if use_conv:
            self.op = nn.Conv2d(channels, out_channels or channels, 3, stride=2, padding=0 if pad_end else 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, out_channels, H/2, W/2)."""
        return self.op(F.pad(x, (0, 1, 0, 1)) if self.pad_end else x)


class Upsample(nn.Module):
    """Double the resolution by repeating pixels, then convolve where use_conv says so."""

    def __init__(self, channels: int, use_conv: bool, dims: int = 2, out_channels: int | None = None) -> None:
        super().__init__()
        require_images(dims)
        self.conv = nn.Conv2d(channels, out_channels or channels, 3, padding=1) if use_conv else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, out_channels, 2H, 2W)."""
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class ResBlock(TimestepBlock):
    """Residual block of two convolutions that takes in the embedding between them.

    Args:
        channels, out_channels: width of its input and of its output (None: the same).
        emb_channels: width of the embedding.
        dropout: probability, before the second convolution.
        use_conv: a 3x3 convolution, not 1x1, where the skip connection changes the width.
        use_scale_shift_norm: the embedding scales and shifts the second norm's result instead of being added before.
        use_checkpoint: recompute the activations in the backward pass.
        up, down: double or halve the resolution of both branches.
        norm: makes its normalisations.
    """

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        dropout: float,
        out_channels: int | None = None,
        use_conv: bool = False,
        use_scale_shift_norm: bool = False,
        dims: int = 2,
        use_checkpoint: bool = False,
        up: bool = False,
        down: bool = False,
        *,
        norm: Callable[[int], nn.Module] = normalization,
    ) -> None:
        super().__init__()
        require_images(dims)
        out_channels = out_channels or channels
        self.use_scale_shift_norm = use_scale_shift_norm
        self.use_checkpoint = use_checkpoint
        self.resample = Upsample(channels, False) if up else Downsample(channels, False) if down else nn.Identity()
        self.in_layers = nn.Sequential(norm(channels), SiLUInPlace(), nn.Conv2d(channels, out_channels, 3, padding=1))
        emb_width = 2 * out_channels if use_scale_shift_norm else out_channels
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, emb_width))
        self.out_layers = nn.Sequential(
            norm(out_channels),
            SiLUInPlace(),
            nn.Dropout(dropout),
            zero_module(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        self.skip_connection = nn.Identity()
        if channels != out_channels:
            kernel = 3 if use_conv else 1
            self.skip_connection = nn.Conv2d(channels, out_channels, kernel, padding=kernel // 2)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """(N, channels, H, W) and (N, emb_channels) -> (N, out_channels, H', W')."""
        return checkpoint(self._forward, (x, emb), self.parameters(), self.use_checkpoint)

    def _forward(self, x: Tensor, emb: Tensor) -> Tensor:
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


class QKVAttention(nn.Module):
    """Self-attention of n_heads heads, for channels that are q, k and v, each of all heads."""

    heads_first = False

    def __init__(self, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads

    def forward(self, qkv: Tensor) -> Tensor:
        """(N, 3C, T) -> (N, C, T)."""
        split = (self.n_heads, 3, -1) if self.heads_first else (3, self.n_heads, -1)
        parts = qkv.unflatten(1, split).unbind(2 if self.heads_first else 1)  # q, k, v: (N, heads, ch, T)
        # Its scale ch^(-1/2) is the published ch^(-1/4) on q and on k.
        q, k, v = (part.transpose(-2, -1) for part in parts)
        return F.scaled_dot_product_attention(q, k, v).transpose(-2, -1).flatten(1, 2)


class QKVAttentionLegacy(QKVAttention):
    """Self-attention of n_heads heads, for channels that are heads, each of q, k and v."""

    heads_first = True


class AttentionBlock(nn.Module):
    """Self-attention between all positions, with a residual connection.

    Of num_heads heads, or of as many as have num_head_channels channels each (-1: num_heads decides). The other
    arguments are those of UNetModel and ResBlock. Raises ValueError where the heads do not divide the channels.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int = 1,
        num_head_channels: int = -1,
        use_checkpoint: bool = False,
        use_new_attention_order: bool = False,
        *,
        norm: Callable[[int], nn.Module] = normalization,
    ) -> None:
        super().__init__()
        by_size = num_head_channels != -1
        divisor = num_head_channels if by_size else num_heads
        if divisor <= 0 or channels % divisor:
            flag = "--num_head_channels" if by_size else "--num_heads (or --num_heads_upsample)"
            raise ValueError(f"{flag} {divisor} does not divide the {channels} channels of an attention block")
        self.num_heads = channels // divisor if by_size else num_heads
        self.use_checkpoint = use_checkpoint
        self.norm = norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.attention = (QKVAttention if use_new_attention_order else QKVAttentionLegacy)(self.num_heads)
        self.proj_out = zero_module(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        return checkpoint(self._forward, (x,), self.parameters(), self.use_checkpoint)

    def _forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (N, T, C), T = H·W
        # A 1x1 convolution is a matrix product over channels; written so, the heads are views: nothing is copied.
        qkv = F.linear(tokens, self.qkv.weight.squeeze(-1), self.qkv.bias)  # (N, T, 3C)
        h = self.attention(qkv.transpose(1, 2)).transpose(1, 2)  # (N, T, C)
        h = F.linear(h, self.proj_out.weight.squeeze(-1), self.proj_out.bias)
        return x + h.transpose(1, 2).reshape(x.shape)
