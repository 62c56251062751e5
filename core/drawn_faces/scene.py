"""What all parts of the drawing share: the canvas, the pose, and the skin and hair as the light shows them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

import numpy as np

from dime.core.drawn_faces.canvas import Canvas, Colour, Mask, smooth_noise
from dime.core.drawn_faces.face import Face
from dime.core.drawn_faces.geometry import Curve, Pose
from dime.core.drawn_faces.palette import DARK, HAIR, PALE_SKIN, SHADOW_TINT, SKIN, WHITE, mix

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
