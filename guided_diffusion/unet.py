"""The U-Net of Dhariwal and Nichol 2021 (ADM) for images, under the published parameter names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from guided_diffusion.nn import NORM_GROUPS, SiLUInPlace, normalization, own_precision, timestep_embedding, zero_module
from guided_diffusion.unet_blocks import BlockFactory, EmbedSequential


class UNetModel(nn.Module):
    """U-Net with attention and timestep embedding, optionally conditioned on labels.

    Args:
        image_size: side of the images it is meant for; it runs on any side that its levels can halve.
        in_channels, out_channels: channels of its input and of its output.
        model_channels: base width.
        num_res_blocks: residual blocks at each level.
        attention_resolutions: downsampling factors at which there is attention (4: at a quarter of the side).
        dropout: probability, inside residual blocks.
        channel_mult: width of each level in units of model_channels.
        conv_resample: convolve when changing the resolution (without resblock_updown).
        dims: 2, the only kind of image there is here.
        num_classes: number of labels, or None for an unconditional network.
        use_checkpoint: recompute activations in the backward pass: less memory, more time.
        use_fp16: recorded only; convert_to_fp16 applies it.
        num_heads, num_heads_upsample: attention heads on the way down and up; -1: up as on the way down.
        num_head_channels: channels of a head, in place of num_heads; -1: num_heads decides.
        use_scale_shift_norm: the embedding scales and shifts normalised features instead of being added.
        resblock_updown: residual blocks change the resolution.
        use_new_attention_order: attention splits q, k, v before the heads.
        multiclass: labels are 0/1 vectors (N, num_classes) instead of class indices (N,).

    Raises ValueError where widths cannot be divided into groups or heads.
    """

    config: dict[str, Any] | None = None
    """The flags that built it, where create_model_and_diffusion did."""

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
    ) -> None:
        super().__init__()
        if dims != 2:
            raise ValueError(f"dims is {dims}: this network is for images, dims 2")
        self.image_size = image_size
        self.model_channels = model_channels
        self.num_classes = num_classes
        self.multiclass = multiclass
        self.use_fp16 = use_fp16
        make = BlockFactory(
            emb_channels=4 * model_channels,
            dropout=dropout,
            conv_resample=conv_resample,
            resblock_updown=resblock_updown,
            use_scale_shift_norm=use_scale_shift_norm,
            use_checkpoint=use_checkpoint,
            num_head_channels=num_head_channels,
            use_new_attention_order=use_new_attention_order,
        )
        widths = [_width(model_channels, mult) for mult in channel_mult]
        levels = [(width, 2**i in attention_resolutions) for i, width in enumerate(widths)]
        self.downsampling = 2 ** (len(levels) - 1)

        self._build_embeddings(4 * model_channels)
        self.input_blocks, skip_widths = _way_down(make, levels, num_res_blocks, num_heads, in_channels)
        self.middle_block = EmbedSequential(
            make.residual(widths[-1], widths[-1]),
            make.attention(widths[-1], num_heads),
            make.residual(widths[-1], widths[-1]),
        )
        heads_up = num_heads if num_heads_upsample == -1 else num_heads_upsample
        self.output_blocks = _way_up(make, levels, num_res_blocks, heads_up, skip_widths)
        head = zero_module(nn.Conv2d(widths[0], out_channels, 3, padding=1))
        self.out = nn.Sequential(normalization(widths[0]), SiLUInPlace(), head)

    def _build_embeddings(self, width: int) -> None:
        self.time_embed = nn.Sequential(nn.Linear(self.model_channels, width), nn.SiLU(), nn.Linear(width, width))
        if self.num_classes is not None:
            self.label_emb = (nn.Linear if self.multiclass else nn.Embedding)(self.num_classes, width)

    @property
    def dtype(self) -> torch.dtype:
        """The type in which the blocks compute."""
        return self.input_blocks[0][0].weight.dtype

    @property
    def head_dtype(self) -> torch.dtype:
        """The type in which embeddings, norms and head compute."""
        return self.out[2].weight.dtype

    def convert_to(self, dtype: torch.dtype) -> None:
        """Turn the convolutions of input, middle and output blocks into float16, bfloat16 or float32.

        Norms, the linear layers of the embeddings and the head stay as they are.
        """
        for blocks in (self.input_blocks, self.middle_block, self.output_blocks):
            for module in blocks.modules():
                if isinstance(module, (nn.Conv1d, nn.Conv2d)):
                    module.to(dtype)

    def convert_to_fp16(self) -> None:
        """convert_to(torch.float16), under its published name."""
        self.convert_to(torch.float16)

    def convert_to_fp32(self) -> None:
        """convert_to(torch.float32), under its published name."""
        self.convert_to(torch.float32)

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        """The network's output for noisy images.

        Args:
            x: (N, in_channels, H, W), H and W divisible by 2^(levels - 1); contiguous or channels-last.
            timesteps: (N,), integers or reals; (1,) where all images share it, which is faster.
            y: labels: class indices (N,), with multiclass 0/1 vectors (N, num_classes); None without classes.

        Returns (N, out_channels, H, W) in the type and memory layout of x, whatever those of the weights. Raises
        ValueError for labels and sides that do not fit.
        """
        self._check_input(x, y)
        with own_precision(x):
            emb = self.time_embed(timestep_embedding(timesteps, self.model_channels).to(self.head_dtype))  # (N, E)
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
            output = self.out(h.to(self.head_dtype)).to(x.dtype)
        return output.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)

    def _check_input(self, x: torch.Tensor, y: torch.Tensor | None) -> None:
        height, width = x.shape[-2:]
        if height % self.downsampling or width % self.downsampling:
            raise ValueError(
                f"images are {height}x{width}: the levels (--channel_mult) need sides divisible by {self.downsampling}"
            )
        if y is None:
            if self.num_classes is not None:
                raise ValueError(f"this network is conditioned on {self.num_classes} classes: give labels y")
            return
        if self.num_classes is None:
            raise ValueError("labels y were given to a network without classes")
        expected = (x.shape[0], self.num_classes) if self.multiclass else (x.shape[0],)
        if y.shape != expected:
            raise ValueError(f"labels y are {tuple(y.shape)}: expected {expected}")


def _width(model_channels: int, mult: float) -> int:
    width = int(mult * model_channels)
    if width <= 0 or width % NORM_GROUPS:
        raise ValueError(
            f"--num_channels {model_channels} times {mult:g} of --channel_mult is {width} channels: "
            f"expected a multiple of {NORM_GROUPS}, for group normalisation"
        )
    return width


def _way_down(
    make: BlockFactory, levels: Sequence[tuple[int, bool]], num_res_blocks: int, num_heads: int, in_channels: int
) -> tuple[nn.ModuleList, list[int]]:
    """The input blocks, and the widths of their outputs, which the way up takes in again.

    levels: width and attention of each, from the full resolution down.
    """
    width = levels[0][0]
    blocks = nn.ModuleList([EmbedSequential(nn.Conv2d(in_channels, width, 3, padding=1))])
    skip_widths = [width]
    for level, (level_width, has_attention) in enumerate(levels):
        if level > 0:
            blocks.append(EmbedSequential(make.down(width)))
            skip_widths.append(width)
        for _ in range(num_res_blocks):
            layers: list[nn.Module] = [make.residual(width, level_width)]
            width = level_width
            if has_attention:
                layers.append(make.attention(width, num_heads))
            blocks.append(EmbedSequential(*layers))
            skip_widths.append(width)
    return blocks, skip_widths


def _way_up(
    make: BlockFactory,
    levels: Sequence[tuple[int, bool]],
    num_res_blocks: int,
    num_heads: int,
    skip_widths: Sequence[int],
) -> nn.ModuleList:
    """The output blocks: each takes in the output of an input block, the last one first."""
    width = levels[-1][0]
    skip_widths = list(skip_widths)
    blocks = nn.ModuleList()
    for level, (level_width, has_attention) in reversed(list(enumerate(levels))):
        for i in range(num_res_blocks + 1):
            layers: list[nn.Module] = [make.residual(width + skip_widths.pop(), level_width)]
            width = level_width
            if has_attention:
                layers.append(make.attention(width, num_heads))
            if level > 0 and i == num_res_blocks:
                layers.append(make.up(width))
            blocks.append(EmbedSequential(*layers))
    return blocks
