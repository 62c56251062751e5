"""The head: outline, ears, nose, and what the skin shows (age, colour of the cheeks, freckles)."""

from __future__ import annotations

import numpy as np

from dime.core.drawn_faces.geometry import Curve, ellipse, half_spline, mirrored, spline, stroke
from dime.core.drawn_faces.scene import WHITE, Scene, Texture, mix, rgb

BLUSH = rgb("ff2f4e")
WRINKLE_WIDTH = 2.3


def jaw_right(scene: Scene) -> Curve:
    """The right half of the face's outline from the cheekbone down to the chin, (N, 2)."""
    face, width = scene.face, scene.face.face_width
    cheek, jaw, chin = (41.5, 36.5, 19.5) if scene.has("Male") else (38.5, 30.0, 11.0)
    upper = [(44 * width, -4), (43.5 * width, 14), (cheek * width, 30)]
    lower = [((jaw + face.jaw) * width, 47 + face.chin * 0.6), (chin * width, 63 + face.chin), (0, 66.5 + face.chin)]
    return half_spline([*upper, *lower])


def head_outline(scene: Scene) -> Curve:
    """The closed outline of head and face."""
    width = scene.face.face_width
    skull = half_spline([(0, -67), (18, -64), (34, -52), (42, -32), (44.5, -14), (44, -4)])[:-1] * (width, 1)
    return mirrored(skull, jaw_right(scene))


def paint_ears(scene: Scene) -> None:
    """Both ears; hair may cover them."""
    size = scene.face.ear_size
    for sign in (1, -1):
        x = sign * 44.5 * scene.face.face_width
        scene.paint(ellipse(x, 3, 7 * size, 13 * size), scene.skin)
        scene.paint(ellipse(x + sign, 3, 4 * size, 8.5 * size), scene.skin_dark, 0.32, 1)


def paint_head(scene: Scene) -> None:
    """The skin of head and face, softly modelled."""
    outline = head_outline(scene)
    scene.paint(outline, scene.skin)
    inside = scene.mask(outline)
    for sign in (1, -1):
        scene.paint(ellipse(sign * 19.5, -9, 13, 8), scene.skin_dark, 0.16, 3.5, inside=inside)
    if scene.has("Bald"):
        x = scene.face.light_angle * 0.28
        scene.paint(ellipse(x, -50, 14, 6), WHITE, 0.40 * scene.face.light_strength, 3.5, inside=inside)
    _paint_cheeks(scene, inside)
    if not scene.has("Young"):
        _paint_age(scene)


def _paint_cheeks(scene: Scene, inside: np.ndarray) -> None:
    blush = mix(BLUSH, scene.skin_base * (1, 0.3, 0.3), 0.25)
    rosy = scene.has("Rosy_Cheeks")
    for sign in (1, -1):
        if rosy:
            scene.paint(ellipse(sign * 27, 17, 11.5, 8), blush, 0.60, 3.2, inside=inside)
        scene.paint(ellipse(sign * 26, 17, 10, 8), blush, 0.10 * scene.face.blush, 4, inside=inside)
    if scene.face.freckles > 0:
        rng = scene.random(Texture.FRECKLES)
        for x, y in rng.random((14, 2)) * (56, 12) + (-28, 6):
            scene.paint(ellipse(x, y, 0.8, 0.8, count=8), scene.skin_dark, 0.5 * scene.face.freckles)


def _paint_age(scene: Scene) -> None:
    """Lines on the forehead, at the eyes and beside the mouth; bags under the eyes; hollow cheeks."""
    depth = scene.face.wrinkle_depth
    dark = scene.skin_dark

    def fold(points: list[tuple[float, float]], width: float = WRINKLE_WIDTH, opacity: float = 0.75) -> None:
        scene.paint(stroke(spline(points), width, 0.8), dark, min(opacity * depth, 1), 0.45)

    for y, half in ((-28, 22), (-35, 25), (-42, 20)):
        fold([(-half, y + 1.5), (-half / 2, y - 0.5), (0, y + 0.8), (half / 2, y - 0.5), (half, y + 1.5)], 1.9, 0.6)
    for side in (1, -1):
        scene.paint(ellipse(side * 33, 30, 6, 13), dark, 0.30 * depth, 3.5)
        scene.paint(ellipse(side * 19.5, 3.5, 9, 3.5), dark, 0.38 * depth, 1.6)
        fold([(side * 11, 3.5), (side * 19, 7.8), (side * 28, 4)], 1.9)
        fold([(side * 11.5, 19), (side * 19, 25), (side * 25, 34), (side * 26, 42)])
        fold([(side * 23, 45), (side * 24, 50), (side * 22, 55)], 1.9, 0.6)
        for rise in (-5, 0, 5):
            fold([(side * 33.5, -6 + rise * 0.4), (side * 40, -6 + rise)], 1.6, 0.65)


def paint_nose(scene: Scene) -> None:
    """Bridge, tip and nostrils; a big nose is wide, long and has a rounded tip."""
    face = scene.face
    big = scene.has("Big_Nose")
    width = (1.75 if big else 1.0) * face.nose_width
    tip = 19 + face.nose_length + (2.5 if big else 0)
    away = -1 if face.light_angle > 0 else 1  # the side in shadow
    dark = scene.skin_dark
    bridge = [(away * 3.5, -6), (away * 4 * width, 6), (away * 6.2 * width, tip)]
    scene.paint(stroke(spline(bridge), 5 * width, 0.6), dark, 0.26, 2, lift=8)
    if big:
        ball = ellipse(0, tip - 2.5, 13.5 * face.nose_width, 9.5)
        scene.paint(ball, mix(scene.skin, BLUSH, 0.10), 1, 0.8, lift=9)
        scene.paint(ellipse(0, tip - 1.5, 13.5 * face.nose_width, 9, 10, 170), dark, 0.30, 1.6, lift=9)
    under = ellipse(0, tip + 3.6, 8 * width, 2.6)
    scene.paint(under, dark, 0.40, 1.4, lift=8)
    for side in (1, -1):
        wing = spline([(side * 6.4 * width, tip - 4.5), (side * 9.2 * width, tip), (side * 6.6 * width, tip + 3.6)])
        scene.paint(stroke(wing, 2.0, 0.7), dark, 0.72, 0.3, lift=8)
        scene.paint(ellipse(side * 3.9 * width, tip + 2.6, 2.3 * width, 1.4), dark * 0.6, 0.85, 0.3, lift=8)
    scene.paint(ellipse(-away * 1.2, tip - 5, 2.6 * width, 3), WHITE, 0.26 * face.light_strength, 1.4, lift=11)
