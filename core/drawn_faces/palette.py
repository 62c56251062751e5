"""The colours of a drawn face, as float32 RGB in [0, 1]."""

from __future__ import annotations

import colorsys

import numpy as np

from dime.core.drawn_faces.face import AUBURN


def rgb(code: str) -> np.ndarray:
    """A colour from its hexadecimal code."""
    return np.array([int(code[i : i + 2], 16) for i in (0, 2, 4)], np.float32) / 255


def hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    """A colour from hue (any real, period 1), saturation and value in [0, 1]."""
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value), np.float32)


def mix(one: np.ndarray, other: np.ndarray, share: float | np.ndarray) -> np.ndarray:
    """`one` with a share in [0, 1] of `other`; a share (H, W) gives one colour per pixel."""
    share = np.asarray(share, np.float32)
    share = share[..., None] if share.ndim else share
    return one + share * (other - one)


SKIN = [rgb(code) for code in ("efbf9c", "e3aa82", "d0946a", "b37850", "8e5b3c", "74492f")]
PALE_SKIN = (rgb("feebdd"), rgb("fde4de"))
HAIR = {
    "Black_Hair": rgb("201d22"),
    "Brown_Hair": rgb("5e3a24"),
    "Blond_Hair": rgb("e3bd6c"),
    "Gray_Hair": rgb("a9abb2"),
    AUBURN: rgb("b4501f"),
}
EYES = [rgb(code) for code in ("4a2f20", "6a4526", "5f7a3c", "4678a8", "75808a")]
LIPSTICKS = [rgb(code) for code in ("c2142e", "d61f5c", "a00f3c", "e03434", "8c1650")]
FRAMES = [rgb(code) for code in ("1b1b20", "4a2618", "7a1f26", "20355c", "3a3a3f")]
METALS = [rgb(code) for code in ("f2c230", "f0f2f6", "2fb7c4")]
WHITE = rgb("ffffff")
TEETH = rgb("fbf8f0")
DARK = rgb("2a1712")
SHADOW_TINT = rgb("8a3a34")
