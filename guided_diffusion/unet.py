"""The U-Net of Dhariwal and Nichol 2021 (ADM) for images, under the published parameter names."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, partialmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from guided_diffusion.nn import (  # noqa: F401 (some are published as names of this module)
    AttentionBlock,
    Downsample,
    QKVAttention,
    QKVAttentionLegacy,
    ResBlock,
    SiLUInPlace,
    TimestepBlock,
    TimestepEmbedSequential,
    Upsample,
    normalization,
    own_precision,
    require_images,
    timestep_embedding,
    zero_module,
)


class Level(NamedTuple):
    """What the blocks of one resolution are."""

    attention: bool  # follows each residual block
    updown: bool  # a residual block changes the resolution, instead of a plain convolution


@dataclass(frozen=True)
class Dialect:
    """In what the U-Nets of other libraries differ from this one; the defaults are this one's own."""

    norm_groups: int = 32
    norm_eps: float = 1e-5
    sin_first: bool = False  # as freq_shift, see timestep_embedding
    freq_shift: float = 0.0
    pad_end: bool = False  # see Downsample
    middle_attention: bool = True  # whether the middle attends, and
    middle_norm: bool = True  # normalises before that
    # the levels of either way, from the full resolution down, in place of attention_resolutions and resblock_updown
    down: tuple[Level, ...] = ()
    up: tuple[Level, ...] = ()


class UNetModel(nn.Module):
    """U-Net with attention and timestep embedding, optionally conditioned on labels.

    Args: those of script_util.MODEL_FLAGS are described there; the others are
        in_channels, out_channels: channels of its input and of its output.
        model_channels: base width (num_channels); channel_mult: the width of each level in units of it.
        attention_resolutions: downsampling factors at which there is attention (4: at a quarter of the side).
        conv_resample: convolve when changing the resolution, unless residual blocks change it.
        dims: 2, the only kind of image there is here.
        num_classes: number of labels, or None for an unconditional network.
        multiclass: labels are 0/1 vectors (N, num_classes) instead of class indices (N,).
        dialect: what another library does otherwise.

    It runs on any side that its levels can halve; use_fp16 is recorded only, and convert_to_fp16 applies it.
    Raises ValueError where widths cannot be divided into groups or heads.
    """

    config: dict[str, Any] | None = None  # the flags that built it, where create_model_and_diffusion did

    def __init__(
        self,
        image_size: int,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int,
        attention_resolutions: Sequence[int],
        dropout: float = 0.0,
        channel_mult: Sequence[float] = (1, 2, 4, 8),
        conv_resample: bool = True,
        dims: int = 2,
        num_classes: int | None = None,
        use_checkpoint: bool = False,
        use_fp16: bool = False,
        num_heads: int = 1,
        num_head_channels: int = -1,
        num_heads_upsample: int = -1,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
        multiclass: bool = False,
        dialect: Dialect = Dialect(),
    ) -> None:
        super().__init__()
        require_images(dims)
        self.image_size, self.in_channels, self.model_channels = image_size, in_channels, model_channels
        self.num_classes, self.multiclass, self.use_fp16, self.dialect = num_classes, multiclass, use_fp16, dialect
        widths = _widths(model_channels, channel_mult, dialect.norm_groups)
        self.downsampling = 2 ** (len(widths) - 1)
        same = [Level(2**i in attention_resolutions, resblock_updown) for i in range(len(widths))]
        down, up = (list(zip(widths, levels or same, strict=True)) for levels in (dialect.down, dialect.up))

        emb_width = 4 * model_channels
        norm = partial(normalization, groups=dialect.norm_groups, eps=dialect.norm_eps)
        shared = {"use_checkpoint": use_checkpoint, "norm": norm}
        within = {"dropout": dropout, "use_scale_shift_norm": use_scale_shift_norm, **shared}
        residual = partial(ResBlock, emb_channels=emb_width, **within)
        heads = {"num_head_channels": num_head_channels, "use_new_attention_order": use_new_attention_order}
        attention = partial(AttentionBlock, num_heads=num_heads, **heads, **shared)

        embedding = nn.Linear(model_channels, emb_width), nn.SiLU(), nn.Linear(emb_width, emb_width)
        self.time_embed = nn.Sequential(*embedding)
        if num_classes is not None:
            self.label_emb = (nn.Linear if multiclass else nn.Embedding)(num_classes, emb_width)

        stem = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        downsample = partial(Downsample, use_conv=conv_resample, pad_end=dialect.pad_end)
        self.input_blocks, skip_widths = _way_down(stem, down, num_res_blocks, residual, attention, downsample)

        width = widths[-1]
        middle_norm = norm if dialect.middle_norm else lambda channels: nn.Identity()
        middle = [attention(width, norm=middle_norm)] if dialect.middle_attention else []
        self.middle_block = TimestepEmbedSequential(residual(width), *middle, residual(width))

        attention = partial(attention, num_heads=num_heads if num_heads_upsample == -1 else num_heads_upsample)
        upsample = partial(Upsample, use_conv=conv_resample)
        self.output_blocks = _way_up(skip_widths, up, num_res_blocks, residual, attention, upsample)
        head = nn.Conv2d(widths[0], out_channels, 3, padding=1)
        self.out = nn.Sequential(norm(widths[0]), SiLUInPlace(), zero_module(head))

    @property
    def dtype(self) -> torch.dtype:
        """The type in which the blocks compute."""
        return self.input_blocks[0][0].weight.dtype

    def convert_to(self, dtype: torch.dtype) -> None:
        """Turn the convolutions of input, middle and output blocks into float16, bfloat16 or float32.

        Norms, the linear layers of the embeddings and the head stay as they are.
        """
        for blocks in (self.input_blocks, self.middle_block, self.output_blocks):
            for module in blocks.modules():
                if isinstance(module, (nn.Conv1d, nn.Conv2d)):
                    module.to(dtype)

    convert_to_fp16 = partialmethod(convert_to, torch.float16)
    convert_to_fp32 = partialmethod(convert_to, torch.float32)

    def forward(self, x: Tensor, timesteps: Tensor, y: Tensor | None = None) -> Tensor:
        """The network's output for noisy images.

        Args:
            x: (N, in_channels, H, W), H and W divisible by 2^(levels - 1); contiguous or channels-last.
            timesteps: (N,), integers or reals; (1,) where all images share it, which is faster.
            y: labels: class indices (N,), with multiclass 0/1 vectors (N, num_classes); None without classes.

        Returns (N, out_channels, H, W) in the type and layout of x. Raises ValueError for what does not fit.
        """
        self._require_fitting(x, y)
        order = {"sin_first": self.dialect.sin_first, "freq_shift": self.dialect.freq_shift}
        sinusoids = timestep_embedding(timesteps, self.model_channels, **order)
        head_dtype = self.out[2].weight.dtype  # of embeddings, norms and head
        with own_precision(x):
            emb = self.time_embed(sinusoids.to(head_dtype))  # (N, E)
            if y is not None:
                emb = emb + self.label_emb(y.to(emb.dtype) if self.multiclass else y)

        h = x.to(self.dtype)
        skips = []
        for block in self.input_blocks:
            h = block(h, emb)
            skips.append(h)
        h = self.middle_block(h, emb)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb)
        last = x.is_contiguous(memory_format=torch.channels_last)
        with own_precision(x):
            output = self.out(h.to(head_dtype)).to(x.dtype)
        return output.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)

    def _require_fitting(self, x: Tensor, y: Tensor | None) -> None:
        count, channels, height, width = x.shape
        if height % self.downsampling or width % self.downsampling:
            need = f"the levels (--channel_mult) need sides divisible by {self.downsampling}"
            raise ValueError(f"images are {height}x{width}: {need}")
        if channels != self.in_channels:
            raise ValueError(f"images have {channels} channels: this network is for {self.in_channels}")
        if self.num_classes is None and y is not None:
            raise ValueError("labels y were given to a network without classes")
        if self.num_classes is not None and y is None:
            raise ValueError(f"this network is conditioned on {self.num_classes} classes: give labels y")
        expected = (count, self.num_classes) if self.multiclass else (count,)
        if y is not None and y.shape != expected:
            raise ValueError(f"labels y are {tuple(y.shape)}: expected {expected}")


Make = Callable[..., nn.Module]
"""A kind of block: makes one for the width of its input."""
Levels = Sequence[tuple[int, Level]]
"""The width of each level, and what its blocks are, from the full resolution down."""


def _widths(model_channels: int, channel_mult: Sequence[float], norm_groups: int) -> list[int]:
    """The channels of each level, from the full resolution down."""
    widths = [round(mult * model_channels) for mult in channel_mult]
    for mult, width in zip(channel_mult, widths, strict=True):
        if width <= 0 or width % norm_groups:
            raise ValueError(
                f"--num_channels {model_channels} times {mult:g} of --channel_mult is {width} channels: "
                f"expected a multiple of {norm_groups}, for group normalisation"
            )
    return widths


def _way_down(
    stem: nn.Module, levels: Levels, num_res_blocks: int, residual: Make, attention: Make, downsample: Make
) -> tuple[nn.ModuleList, list[int]]:
    """The input blocks, and how many channels each of them puts out."""
    blocks, skip_widths = [[stem]], [levels[0][0]]
    for i, (width, level) in enumerate(levels):
        for _ in range(num_res_blocks):
            blocks.append([residual(skip_widths[-1], out_channels=width)])
            if level.attention:
                blocks[-1].append(attention(width))
            skip_widths.append(width)
        if i < len(levels) - 1:
            blocks.append([residual(width, down=True) if level.updown else downsample(width)])
            skip_widths.append(width)
    return nn.ModuleList(TimestepEmbedSequential(*block) for block in blocks), skip_widths


def _way_up(
    skip_widths: list[int], levels: Levels, num_res_blocks: int, residual: Make, attention: Make, upsample: Make
) -> nn.ModuleList:
    """The output blocks: each takes in again what an input block has put out, the last one first."""
    blocks, below, skip_widths = [], levels[-1][0], list(skip_widths)
    for i, (width, level) in reversed(list(enumerate(levels))):
        for number in range(num_res_blocks + 1):
            blocks.append([residual(below + skip_widths.pop(), out_channels=width)])
            below = width
            if level.attention:
                blocks[-1].append(attention(width))
            if i > 0 and number == num_res_blocks:
                blocks[-1].append(residual(width, up=True) if level.updown else upsample(width))
    return nn.ModuleList(TimestepEmbedSequential(*block) for block in blocks)
