"""The U-Net of Dhariwal and Nichol 2021 (ADM) for images, under the published parameter names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from guided_diffusion.nn import NORM_GROUPS, normalization, timestep_embedding, zero_module


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
            normalization(channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        emb_width = 2 * out_channels if use_scale_shift_norm else out_channels
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, emb_width))
        self.out_layers = nn.Sequential(
            normalization(out_channels),
            nn.SiLU(),
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
        emb = self.emb_layers(emb).to(h.dtype)[:, :, None, None]
        norm, activation, dropout, conv = self.out_layers
        if self.use_scale_shift_norm:
            scale, shift = emb.chunk(2, dim=1)
            h = torch.addcmul(shift, norm(h), 1 + scale)
        else:
            h = norm(h + emb)
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


class UNetModel(nn.Module):
    """U-Net with attention and timestep embedding, optionally conditioned on labels.

    Args:
        image_size: side of the images it is meant for; it runs on any side that its levels can halve.
        in_channels, out_channels: channels of its input and of its output.
        model_channels: base width.
        num_res_blocks: residual blocks at each level.
        attention_resolutions: downsampling factors at which there is attention (4: at a quarter of the side).
        channel_mult: width of each level in units of model_channels.
        conv_resample: convolve when changing the resolution (without resblock_updown).
        dims: 2, the only kind of image there is here.
        num_classes: number of labels, or None for an unconditional network.
        multiclass: labels are 0/1 vectors (N, num_classes) instead of class indices (N,).
        use_checkpoint: recompute activations in the backward pass.
        use_fp16: the wish to run in half precision, recorded; convert_to_fp16 grants it.
        num_heads, num_heads_upsample: attention heads on the way down and up; -1: as on the way down.
        num_head_channels: channels of a head, in place of num_heads; -1: num_heads decides.
        use_scale_shift_norm: see ResBlock.
        resblock_updown: residual blocks change the resolution instead of Downsample and Upsample.
        use_new_attention_order: see AttentionBlock.

    Raises ValueError where widths cannot be divided into groups or heads.
    """

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
        self.in_channels = in_channels
        self.model_channels = model_channels
        self.out_channels = out_channels
        self.num_res_blocks = num_res_blocks
        self.attention_resolutions = tuple(attention_resolutions)
        self.dropout = dropout
        self.conv_resample = conv_resample
        self.num_classes = num_classes
        self.multiclass = multiclass
        self.use_checkpoint = use_checkpoint
        self.use_fp16 = use_fp16
        self.num_heads = num_heads
        self.num_head_channels = num_head_channels
        self.num_heads_upsample = num_heads if num_heads_upsample == -1 else num_heads_upsample
        self.use_scale_shift_norm = use_scale_shift_norm
        self.resblock_updown = resblock_updown
        self.use_new_attention_order = use_new_attention_order
        self.channel_mult = tuple(channel_mult)
        self.widths = [self._width(mult) for mult in self.channel_mult]

        emb_channels = 4 * model_channels
        self.time_embed = nn.Sequential(
            nn.Linear(model_channels, emb_channels), nn.SiLU(), nn.Linear(emb_channels, emb_channels)
        )
        if num_classes is not None:
            table = nn.Linear if multiclass else nn.Embedding
            self.label_emb = table(num_classes, emb_channels)
        self.input_blocks, skip_widths = self._build_input_blocks()
        width = self.widths[-1]
        self.middle_block = EmbedSequential(
            self._res_block(width, width), self._attention(width, num_heads), self._res_block(width, width)
        )
        self.output_blocks = self._build_output_blocks(skip_widths)
        self.out = nn.Sequential(
            normalization(self.widths[0]),
            nn.SiLU(),
            zero_module(nn.Conv2d(self.widths[0], out_channels, 3, padding=1)),
        )

    def _width(self, mult: float) -> int:
        width = int(mult * self.model_channels)
        if width <= 0 or width % NORM_GROUPS:
            raise ValueError(
                f"--num_channels {self.model_channels} times {mult:g} of --channel_mult gives {width} channels: "
                f"expected a multiple of {NORM_GROUPS}, for group normalisation"
            )
        return width

    def _res_block(self, width: int, out_width: int, resample: nn.Module | None = None) -> ResBlock:
        return ResBlock(
            width,
            out_width,
            4 * self.model_channels,
            dropout=self.dropout,
            resample=resample,
            use_scale_shift_norm=self.use_scale_shift_norm,
            use_checkpoint=self.use_checkpoint,
        )

    def _attention(self, width: int, num_heads: int) -> AttentionBlock:
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

    def _build_input_blocks(self) -> tuple[nn.ModuleList, list[int]]:
        """The way down, and the widths of its outputs, which the way up takes in again."""
        width, factor = self.widths[0], 1
        blocks = nn.ModuleList([EmbedSequential(nn.Conv2d(self.in_channels, width, 3, padding=1))])
        skip_widths = [width]
        for level, level_width in enumerate(self.widths):
            for _ in range(self.num_res_blocks):
                layers = [self._res_block(width, level_width)]
                width = level_width
                if factor in self.attention_resolutions:
                    layers.append(self._attention(width, self.num_heads))
                blocks.append(EmbedSequential(*layers))
                skip_widths.append(width)
            if level < len(self.widths) - 1:
                down = (
                    self._res_block(width, width, nn.AvgPool2d(2))
                    if self.resblock_updown
                    else Downsample(width, self.conv_resample)
                )
                blocks.append(EmbedSequential(down))
                skip_widths.append(width)
                factor *= 2
        return blocks, skip_widths

    def _build_output_blocks(self, skip_widths: list[int]) -> nn.ModuleList:
        width, factor = self.widths[-1], 2 ** (len(self.widths) - 1)
        blocks, skip_widths = nn.ModuleList(), list(skip_widths)
        for level, level_width in reversed(list(enumerate(self.widths))):
            for i in range(self.num_res_blocks + 1):
                layers: list[nn.Module] = [self._res_block(width + skip_widths.pop(), level_width)]
                width = level_width
                if factor in self.attention_resolutions:
                    layers.append(self._attention(width, self.num_heads_upsample))
                if level > 0 and i == self.num_res_blocks:
                    layers.append(
                        self._res_block(width, width, nn.Upsample(scale_factor=2, mode="nearest"))
                        if self.resblock_updown
                        else Upsample(width, self.conv_resample)
                    )
                    factor //= 2
                blocks.append(EmbedSequential(*layers))
        return blocks

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
            timesteps: (N,), integers or reals.
            y: labels: class indices (N,), with multiclass 0/1 vectors (N, num_classes); None without classes.

        Returns (N, out_channels, H, W) in the type of x. Raises ValueError for labels or sides that do not fit.
        """
        self._check_input(x, y)
        emb = self.time_embed(timestep_embedding(timesteps, self.model_channels).to(self._head_dtype))
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
        return self.out(h.to(self._head_dtype)).to(x.dtype)

    @property
    def _head_dtype(self) -> torch.dtype:
        return self.out[2].weight.dtype

    def _check_input(self, x: torch.Tensor, y: torch.Tensor | None) -> None:
        factor = 2 ** (len(self.widths) - 1)
        if x.shape[-1] % factor or x.shape[-2] % factor:
            raise ValueError(
                f"images are {x.shape[-2]}x{x.shape[-1]}: with {len(self.widths)} levels (--channel_mult) "
                f"the sides must be divisible by {factor}"
            )
        if (y is None) != (self.num_classes is None):
            raise ValueError(
                "labels y were given to a network without classes"
                if y is not None
                else f"this network is conditioned on {self.num_classes} classes: give labels y"
            )
        expected = (x.shape[0], self.num_classes) if self.multiclass else (x.shape[0],)
        if y is not None and y.shape != expected:
            raise ValueError(f"labels y are {tuple(y.shape)}: expected {expected}")


def _checkpointed(enabled: bool, function, *inputs: torch.Tensor) -> torch.Tensor:
    """function(*inputs), its activations recomputed in the backward pass when enabled."""
    if enabled and torch.is_grad_enabled():
        return checkpoint(function, *inputs, use_reentrant=False)
    return function(*inputs)
