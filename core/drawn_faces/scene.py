"""What all parts of the drawing share: the picture so far, the pose, colours, skin and hair in the light."""

import colorsys
import math
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from dime.core.drawn_faces.face import AUBURN, HAIR_COLOURS, Face
from dime.core.drawn_faces.geometry import Curve

Colour = np.ndarray
"""Float32 RGB in [0, 1]: one colour (3,) or one per pixel (H, W, 3)."""
Mask = np.ndarray | None
"""Where paint may go, (H, W) in [0, 1]; None: everywhere."""


def palette(codes: str) -> np.ndarray:
    """Colours (N, 3) from their hexadecimal codes, separated by spaces."""
    return np.array([list(bytes.fromhex(code)) for code in codes.split()], np.float32) / 255


def hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    """A colour from hue (any real, period 1), saturation and value in [0, 1]."""
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value), np.float32)


def mix(one: np.ndarray, other: np.ndarray, share: float | np.ndarray) -> np.ndarray:
    """`one` with a share in [0, 1] of `other`; a share (H, W) gives one colour per pixel."""
    share = np.asarray(share, np.float32)
    share = share[..., None] if share.ndim else share
    return one + share * (other - one)


SKIN = palette("efbf9c e3aa82 d0946a b37850 8e5b3c 74492f")
PALE_SKIN = palette("feebdd fde4de")
HAIR = dict(zip((*HAIR_COLOURS, AUBURN), palette("201d22 e3bd6c 5e3a24 a9abb2 b4501f"), strict=True))
WHITE, DARK, SHADOW_TINT = palette("ffffff 2a1712 8a3a34")

SUPERSAMPLING = 4

Texture = IntEnum("Texture", ["GRAIN", "HAIR", "BACKDROP", "FRECKLES", "BROWS"], start=0)
"""What has random numbers of its own."""


@dataclass(frozen=True)
class Scene:
    """One face in the making, in a picture of `size` (width, height).

    Curves are given in face coordinates, lengths in pixels of a 178x218 picture.
    """

    face: Face
    size: tuple[int, int]

    @cached_property
    def pixels(self) -> np.ndarray:
        """What has been painted so far, (H, W, 3)."""
        return np.zeros((*self.size[::-1], 3), np.float32)

    @cached_property
    def unit(self) -> float:
        """Pixels of this picture per pixel of a 178x218 one."""
        return max(self.size[0] / 178, self.size[1] / 218)

    def has(self, name: str) -> bool:
        """Whether the face has this attribute."""
        return name in self.face.has

    def random(self, texture: Texture) -> np.random.Generator:
        """Random numbers for one texture, the same whatever attributes the face has."""
        return np.random.default_rng([self.face.seed, self.face.index, texture])

    def hills(self, rng: np.random.Generator, cell: float) -> np.ndarray:
        """Smooth noise (H, W) in [-1, 1], its hills about `cell` wide."""
        width, height = (math.ceil(side / (cell * self.unit)) + 1 for side in self.size)
        coarse = rng.random((height, width), np.float32) * 2 - 1
        return np.asarray(Image.fromarray(coarse).resize(self.size, Image.Resampling.BICUBIC))

    # where things lie

    @cached_property
    def _similarity(self) -> tuple[np.ndarray, np.ndarray]:
        """Matrix (2, 2) and offset (2,) from face coordinates to pixels."""
        face, angle = self.face, np.radians(self.face.roll)
        factor = face.scale * self.unit
        matrix = factor * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        centre = np.array([face.shift_x, 9 + face.shift_y])  # the eyes lie where CelebA's alignment puts them
        return matrix, centre * self.unit + np.array(self.size) / 2

    def on_body(self, curve: Curve) -> Curve:
        """Pixel positions of points on the body, which neither turns nor tilts with the head."""
        return curve * self.face.scale * self.unit + self._similarity[1]

    def on_head(self, curve: Curve, lift: float = 0.0) -> Curve:
        """Pixel positions of points on the head's surface, or `lift` in front of it.

        Points beyond the head's outline do not turn; inside it they move with the surface, most in the middle.
        """
        matrix, offset = self._similarity
        x, y, yaw, depth = *curve.T, np.radians(self.face.yaw), 40.0
        height = depth * np.sqrt(np.clip(1 - (x / 49.0) ** 2 - (y / 78.0) ** 2, 0, 1)) + lift
        turned = x * np.cos(yaw) + (height - depth / 2) * np.sin(yaw), y + self.face.nod * height / depth
        return np.stack(turned, axis=1) @ matrix.T + offset

    @cached_property
    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Face coordinates x, y (H, W) of the pixel centres, the turn of the head left out."""
        matrix, offset = self._similarity
        width, height = self.size
        inverse = np.linalg.inv(matrix).astype(np.float32)
        x = np.arange(width, dtype=np.float32) + np.float32(0.5 - offset[0])
        y = np.arange(height, dtype=np.float32)[:, None] + np.float32(0.5 - offset[1])
        return inverse[0, 0] * x + inverse[0, 1] * y, inverse[1, 0] * x + inverse[1, 1] * y

    # painting

    def paint(
        self, curve: Curve, colour: Colour, opacity: float = 1, blur: float = 0, lift: float = 0, inside: Mask = None
    ) -> None:
        """Fill a closed curve on the head, or `lift` in front of it; see `fill`."""
        self.fill(self.on_head(curve, lift), colour, opacity, blur, inside)

    def fill(self, outline: Curve, colour: Colour, opacity: float = 1, blur: float = 0, inside: Mask = None) -> None:
        """Paint the inside of a closed outline given in pixels; blur: standard deviation of the edge's softness."""
        window, coverage = self._coverage(outline, blur * self.unit)
        alpha = opacity * coverage
        if inside is not None:
            alpha = alpha * inside[window]
        target = self.pixels[window]
        target += alpha[..., None] * ((colour[window] if colour.ndim == 3 else colour) - target)

    def mask(self, curve: Curve) -> np.ndarray:
        """How far each pixel lies inside a closed curve on the head, (H, W) in [0, 1]."""
        mask, (window, coverage) = np.zeros(self.size[::-1], np.float32), self._coverage(self.on_head(curve))
        mask[window] = coverage
        return mask

    def _coverage(self, outline: Curve, blur: float = 0.0) -> tuple[tuple[slice, slice], np.ndarray]:
        """The rows and columns that the shape can touch, and how far each of their pixels lies inside it."""
        margin = 1 + math.ceil(3 * blur)
        start = np.clip(np.floor(outline.min(0)).astype(int) - margin, 0, self.size)
        stop = np.clip(np.ceil(outline.max(0)).astype(int) + margin, 0, self.size)
        window = slice(start[1], stop[1]), slice(start[0], stop[0])
        width, height = (stop - start).tolist()
        if not width * height:
            return window, np.zeros((height, width), np.float32)
        large = Image.new("L", (width * SUPERSAMPLING, height * SUPERSAMPLING))
        points = (outline - start) * SUPERSAMPLING - 0.5
        ImageDraw.Draw(large).polygon(points.ravel().tolist(), fill=255)
        small = large.reduce(SUPERSAMPLING)
        if blur:
            small = small.filter(ImageFilter.GaussianBlur(blur))
        return window, np.asarray(small, np.float32) / 255

    # skin and hair

    @cached_property
    def light(self) -> np.ndarray:
        """How much light a rounded head receives, (H, W) in [0, 1]."""
        nx, ny = self.grid[0] / 58, (self.grid[1] + 4) / 92
        nz, angle = np.sqrt(np.clip(1 - nx**2 - ny**2, 0.02, 1)), np.radians(self.face.light_angle)
        light = nx * (0.62 * np.sin(angle)) + ny * (-0.45 * np.cos(angle)) + 0.72 * nz
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
        x, y = self.grid
        rng = self.random(Texture.HAIR)
        angle = np.arctan2(x - 0.5 * self.face.part, y + 66)
        knots = rng.random(90, np.float32) * 2 - 1
        strands = np.interp(angle / (2 * np.pi) * 90 + 45, np.arange(90), knots).astype(np.float32)
        curls = self.hills(rng, 5.5)
        wave = self.face.hair_wave
        texture = (1 - wave) * strands + wave * 1.2 * curls
        radius = np.hypot(x - 0.16 * self.face.light_angle, 0.9 * (y + 8))
        shine = np.exp(-(((radius - 56) / 9) ** 2)) * np.clip(-y / 60, 0, 1)
        tone = 0.15 * texture + 0.5 * (self.light - 0.62) + 0.45 * shine * self.face.light_strength
        lit = self.hair_base * (1 + np.minimum(tone, 0)[..., None])
        return mix(lit, WHITE, 0.42 * np.clip(tone, 0, 1))
