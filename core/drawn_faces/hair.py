"""Hair on the head and in the face."""

from __future__ import annotations

import numpy as np

from dime.core.drawn_faces.face import HairLength
from dime.core.drawn_faces.features import mouth_curves
from dime.core.drawn_faces.geometry import Curve, between, half_spline, mirrored, moved, spline
from dime.core.drawn_faces.head import jaw_right
from dime.core.drawn_faces.scene import DARK, Scene, mix


def paint_back_hair(scene: Scene) -> None:
    """The hair behind head and neck; short hair has none below the ears."""
    face = scene.face
    if face.hair_length == HairLength.SHORT:
        return
    out = 47 + 0.5 * face.hair_volume
    tip, bottom = (out + 2, 58) if face.hair_length == HairLength.JAW else (out + 6, 104)
    upper = [(0, -60), (30, -52), (out - 1, -20), (out + 2, 15)]
    lower = [(tip, bottom * 0.6), (tip - 2, bottom - 8), (tip - 14, bottom), (0, bottom)]
    curve = mirrored(_curled(scene, half_spline([*upper, *lower]), 5))
    scene.paint(curve, mix(scene.hair * 0.84, DARK, 0.06), inside=_below_hat(scene))


def paint_front_hair(scene: Scene) -> None:
    """The hair over the skull, with its parting, and down the sides of the face."""
    face, inside = scene.face, _below_hat(scene)
    top, out = -67 - face.hair_volume, 45.5 * face.face_width + 0.45 * face.hair_volume
    end, inner, wider = {
        HairLength.SHORT: (8, 42.5, 0),
        HairLength.JAW: (52, 40, 3),
        HairLength.SHOULDERS: (84, 40, 5),
    }[face.hair_length]
    inner *= face.face_width
    spread = out + wider - inner  # side locks end in a point
    tail = [(out - 1, -32), (out + 2, -8), (out + wider, end)]
    crown = _curled(scene, half_spline([(0, top), (20, top + 5), (36, top + 19), *tail]), 6)
    outer = mirrored(crown)  # crown right down to the ear, then from the left ear up to the crown
    lock = [(inner + spread, end), (inner + 0.2 * spread, end * 0.6)]
    temple = [*lock, (inner - 0.5, -6), (37 - face.hair_fall, -24), (28 - face.hair_fall, -39)]
    hairline = spline([*temple, (face.part, face.hairline), *((-x, y) for x, y in reversed(temple))])
    shadow = between(hairline * (0.95, 1) + (0, 3), hairline)  # on the skin just inside the hair's edge
    scene.paint(shadow, scene.skin_dark, 0.35, 2.0, inside=inside)
    scene.paint(np.concatenate([outer[: len(crown)], hairline, outer[len(crown) :]]), scene.hair, inside=inside)


def paint_bangs(scene: Scene) -> None:
    """Locks from the parting over the forehead."""
    face, inside, x = scene.face, _below_hat(scene), np.linspace(-37, 37, 41)
    locks = 1.8 * np.abs(np.sin(x / 74 * np.pi * 6 + face.part)) - 1
    lower = np.stack([x, face.fringe + face.fringe_slant * x / 37 + locks + 0.0036 * x**2], axis=1)
    upper = spline([(39, -36), (30, -54), (0, -64), (-30, -54), (-39, -36)])
    scene.paint(np.concatenate([moved(lower, 0, 2.5), upper]), scene.skin_dark, 0.40, 1.8, inside=inside)
    scene.paint(np.concatenate([lower, upper]), scene.hair, inside=inside)
    for at in (-24, -12, 0, 12, 24):
        lock = spline([(face.part * 0.5 + at * 0.5, -60), (at * 0.85, -48), (at, face.fringe - 1)])
        scene.paint(between(moved(lock, 0.7, 0), moved(lock, -0.7, 0)), scene.hair_base * 0.6, 0.45, 0.5, inside=inside)


def paint_beard(scene: Scene) -> None:
    """The full beard, along the jaw and over the chin, below the mouth."""
    face, jaw, low = scene.face, jaw_right(scene), mouth_curves(scene)[3][12, 1]
    outer = jaw[jaw[:, 1] >= 2] * (1.01, 1) + (0, 1.5)
    cheek = [(28, 31 + face.beard_height), (35, 18 + face.beard_height), (42 * face.face_width, 1)]
    inner = spline([(0, low + 3), (9, low + 2), (20, 43), *cheek])
    scene.paint(mirrored(inner, outer), mix(scene.hair * 0.74, DARK, 0.06), 0.96, 0.8)


def paint_mustache(scene: Scene) -> None:
    """Two wings between nose and mouth; their tips follow the corners of the mouth."""
    width, smiling, (top, line, _, _) = scene.face.mustache_width, scene.has("Smiling"), mouth_curves(scene)
    middle, tip = top[12, 1], line[-1, 1] - (2.5 if smiling else -1.5)
    root = 25.5 + 0.3 * scene.face.nose_length
    wing = [(0, root + 1), (7, root), (width - 5, (root + tip) / 2 - (1.5 if smiling else 0.5)), (width, tip)]
    back = [(width, tip), (width - 7, tip + (3.5 if smiling else 0.5)), (9, middle + 1), (0, middle + 0.2)]
    scene.paint(mirrored(spline(wing), spline(back)[1:]), mix(scene.hair * 0.72, DARK, 0.10), 0.97, 0.5, lift=3)


def _curled(scene: Scene, curve: Curve, strength: float) -> Curve:
    """The curve with the waves of curly hair."""
    curl = max(scene.face.hair_wave - 0.45, 0)
    step = np.linalg.norm(np.diff(curve, axis=0, prepend=curve[:1]), axis=1).cumsum()
    bumps = np.abs(np.sin(step / 9)) * strength * curl
    return curve + np.stack([bumps * np.sign(curve[:, 0]), -bumps * (curve[:, 1] < -30)], axis=1)


def _below_hat(scene: Scene) -> np.ndarray | None:
    """A mask (H, W) of what a hat leaves of the hair; None without a hat."""
    return np.clip(scene.grid[1] + 40, 0, 1) if scene.has("Wearing_Hat") else None
