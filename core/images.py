"""Between floats in [-1, 1] and the 8-bit images on disk: every conversion of the project stands here."""

import io
from typing import Any

import numpy as np
import torch
from PIL import Image


def to_uint8(x: torch.Tensor) -> torch.Tensor:
    """Generated images [-1, 1] -> uint8 of the same shape: (x + 1) * 127.5, clamped and truncated as published."""
    return ((x + 1) * 127.5).clamp(0, 255).to(torch.uint8)


def input_to_uint8(x: torch.Tensor) -> torch.Tensor:
    """Inputs [-1, 1] -> the 8-bit values they were read from (rounded: truncating loses a level in 63 of 256)."""
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def from_image(image: Image.Image | np.ndarray) -> torch.Tensor:
    """The pixels of an RGB or grey image, or 8-bit arrays (..., H, W, C) -> (..., C, H, W) in [-1, 1]."""
    pixels = np.array(image)
    if isinstance(image, Image.Image) and image.mode == "L":
        pixels = pixels[..., None]
    return torch.from_numpy(pixels).movedim(-1, -3) / 127.5 - 1


def to_hwc(images: torch.Tensor) -> np.ndarray:
    """uint8 (..., C, H, W) -> numpy (..., H, W, C), as image files want them."""
    return images.movedim(-3, -1).contiguous().cpu().numpy()


def to_image(pixels: np.ndarray) -> Image.Image:
    """8-bit pixels (H, W, C) -> an RGB image, or a grey one where C is 1."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def encoded(image: Image.Image | np.ndarray, suffix: str, **options: Any) -> bytes:
    """A picture, or 8-bit pixels (H, W, C), as the file that a suffix such as .jpg names (Pillow's quality 75)."""
    buffer = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else to_image(image)
    picture.save(buffer, Image.registered_extensions()[suffix], **options)
    return buffer.getvalue()


def reopened(image: Image.Image | np.ndarray, suffix: str, **options: Any) -> Image.Image:
    """An RGB picture as it comes back from the file that `encoded` gives."""
    return Image.open(io.BytesIO(encoded(image, suffix, **options))).convert("RGB")


def difference_map(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Where two 8-bit images (H, W, C) differ: summed over channels, the largest value at 255, three equal channels."""
    s = np.abs(a.astype(np.int64) - b.astype(np.int64)).sum(axis=-1)
    scaled = (255 * s / max(s.max(), 1)).astype(np.uint8)
    return np.repeat(scaled[..., None], 3, axis=-1)


def mean_difference(a: np.ndarray, b: np.ndarray) -> np.float32:
    """Mean |a - b| over pixels and channels of two 8-bit images, on the scale [0, 1] (the l_1 of the result files)."""
    return np.float32(np.abs(a.astype(np.float64) - b.astype(np.float64)).mean() / 255)


def grid_png(x: torch.Tensor, columns: int) -> bytes:
    """Images (N, C, H, W) in [-1, 1], side by side in rows of `columns`, as a PNG file."""
    from torchvision.utils import save_image

    file = io.BytesIO()
    save_image(x, file, format="png", nrow=columns, normalize=True, value_range=(-1, 1))
    return file.getvalue()
