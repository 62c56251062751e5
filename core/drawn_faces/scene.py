"""What all parts of the drawing share: colours, the canvas, the pose, and skin and hair as the light shows them.

Colours are float32 RGB in [0, 1].
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

import numpy as np

from dime.core.drawn_faces.canvas import Canvas, Colour, Mask, smooth_noise
from dime.core.drawn_faces.face import AUBURN, Face
from dime.core.drawn_faces.geometry import Curve, Pose


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

Texture = IntEnum("Texture", ["GRAIN", "HAIR", "BACKDROP", "FRECKLES", "BROWS"], start=0)
"""What has random numbers of its own."""


@dataclass(frozen=True)
class Scene:
    """One face in the making. Curves are given in face coordinates, lengths in pixels of a 178x218 picture."""

    face: Face
    canvas: Canvas
    pose: Pose

    def has(self, name: str) -> bool:
        """Whether the face has this attribute."""
        return name in self.face.has

    def random(self, texture: Texture) -> np.random.Generator:
        """Random numbers for one texture, the same whatever attributes the face has."""
        return np.random.default_rng([self.face.seed, self.face.index, texture])

    def paint(
        self, curve: Curve, colour: Colour, opacity: float = 1, blur: float = 0, lift: float = 0, inside: Mask = None
    ) -> None:
        """Fill a closed curve on the head, or `lift` in front of it. See Canvas.fill."""
        self.canvas.fill(self.pose.place(curve, lift), colour, opacity, blur * self.pose.pixels, inside)

    def mask(self, curve: Curve) -> np.ndarray:
        """The pixels inside a closed curve on the head, (H, W) in [0, 1]."""
        return self.canvas.mask(self.pose.place(curve))

    def paint_body(self, curve: Curve, colour: Colour, opacity: float = 1.0, blur: float = 0.0) -> None:
        """Fill a closed curve on the body, which neither turns nor tilts with the head."""
        self.canvas.fill(self.pose.place_body(curve), colour, opacity, blur * self.pose.pixels)

    @cached_property
    def light(self) -> np.ndarray:
        """How much light a rounded head receives, (H, W) in [0, 1]."""
        x, y = self.pose.grid
        nx, ny = x / 58, (y + 4) / 92
        nz = np.sqrt(np.clip(1 - nx**2 - ny**2, 0.02, 1))
        angle = np.radians(self.face.light_angle)
        toward = 0.62 * np.sin(angle), -0.45 * np.cos(angle)
        light = nx * toward[0] + ny * toward[1] + 0.72 * nz
        return np.clip(0.28 + 0.85 * light, 0, 1)

    @cached_property
    def skin_base(self) -> np.ndarray:
        """The skin in full light, (3,)."""
        face = self.face
        if self.has("Pale_Skin"):
            return mix(*PALE_SKIN, (face.skin_warmth + 1) / 2)
        at = face.skin_tone * (len(SKIN) - 1)
        low = min(int(at), len(SKIN) - 2)
        tone = mix(SKIN[low], SKIN[low + 1], at - low) + face.skin_warmth * np.array([0.012, 0, -0.012])
        return tone.astype(np.float32)

    @cached_property
    def skin_dark(self) -> np.ndarray:
        """The colour of folds and outlines on the skin, (3,)."""
        return mix(self.skin_base * 0.52, SHADOW_TINT * self.skin_base.mean(), 0.35)

    @cached_property
    def skin(self) -> np.ndarray:
        """The skin as lit, (H, W, 3)."""
        shadow = mix(self.skin_base * (0.80, 0.72, 0.70), SHADOW_TINT, 0.10)
        depth = (1 - self.light) * (0.55 + 0.6 * self.face.light_strength)
        lit = mix(self.skin_base, shadow, np.clip(depth, 0, 1))
        return mix(lit, WHITE, 0.10 * self.face.light_strength * self.light**6)

    @cached_property
    def hair_base(self) -> np.ndarray:
        """The hair in plain light, (3,)."""
        reach = 0.05 if self.face.hair == "Black_Hair" else 0.14
        return mix(HAIR[self.face.hair], WHITE if self.face.hair_tint > 0 else DARK, reach * abs(self.face.hair_tint))

    @cached_property
    def brow_colour(self) -> np.ndarray:
        """Brows and lashes: the hair, darker."""
        return mix(self.hair_base * 0.62, DARK, 0.25)

    @cached_property
    def hair(self) -> np.ndarray:
        """The hair as lit, with strands from the parting outwards, or curls, (H, W, 3)."""
        x, y = self.pose.grid
        rng = self.random(Texture.HAIR)
        angle = np.arctan2(x - 0.5 * self.face.part, y + 66)
        knots = rng.random(90, np.float32) * 2 - 1
        strands = np.interp(angle / (2 * np.pi) * 90 + 45, np.arange(90), knots).astype(np.float32)
        curls = smooth_noise(rng, self.pose.size, 5.5 * self.pose.pixels)
        wave = self.face.hair_wave
        texture = (1 - wave) * strands + wave * 1.2 * curls
        radius = np.hypot(x - 0.16 * self.face.light_angle, 0.9 * (y + 8))
        shine = np.exp(-(((radius - 56) / 9) ** 2)) * np.clip(-y / 60, 0, 1)
        tone = 0.15 * texture + 0.5 * (self.light - 0.62) + 0.45 * shine * self.face.light_strength
        lit = self.hair_base * (1 + np.minimum(tone, 0)[..., None])
        return mix(lit, WHITE, 0.42 * np.clip(tone, 0, 1))
