"""What a face can put on: glasses, a hat, earrings."""

from __future__ import annotations

import numpy as np

from dime.core.drawn_faces.face import Earring, Glasses
from dime.core.drawn_faces.geometry import Curve, ellipse, half_spline, mirrored, moved, ring, spline, stroke
from dime.core.drawn_faces.scene import FRAMES, METALS, WHITE, Scene, hsv, mix

FRAME_WIDTH = 3.3


def paint_glasses(scene: Scene) -> None:
    """Frames of three shapes in front of the eyes."""
    face = scene.face
    frame = FRAMES[face.glasses_colour]
    for side in (1, -1):
        centre = np.array([side * (20 + face.eye_gap), -4])
        rim = _lens(scene) * (side, 1) + centre
        inner = _lens(scene) * (side * 0.80, 0.78) + centre
        scene.paint(inner, WHITE, 0.10, lift=6)
        outline = ring(rim, inner)
        scene.paint(moved(outline, 0, 1.6), scene.skin_dark, 0.30, 1.2, lift=4)
        scene.paint(outline, frame, lift=6)
        gleam = np.array([(-7, -2), (1, -13), (4.5, -13), (-3.5, -2)]) + centre
        scene.paint(gleam, WHITE, 0.22, 0.4, lift=6)
        arm = np.array([(side * (34 + face.eye_gap), -9), (side * 46 * face.face_width, -6)])
        scene.paint(stroke(arm, FRAME_WIDTH, 0), frame, lift=1)
    bridge = spline([(-6.5 - face.eye_gap, -6), (0, -9), (6.5 + face.eye_gap, -6)])
    scene.paint(stroke(bridge, FRAME_WIDTH, 0), frame, lift=7)


def _lens(scene: Scene) -> Curve:
    """The outer edge of a right-hand lens around its centre."""
    if scene.face.glasses == Glasses.ROUND:
        return ellipse(0, 0, 14.4, 13.2, count=40)
    square = [(-13, -10.5), (0, -11.5), (14, -11), (15, 0), (13, 10.5), (0, 11.5), (-12, 10.5), (-14, 0)]
    half_moon = [(-13, -9), (0, -11), (14, -12), (16, -5), (10, 10), (0, 13), (-10, 10), (-14.5, -2)]
    return spline(square if scene.face.glasses == Glasses.SQUARE else half_moon, closed=True)


def paint_hat(scene: Scene) -> None:
    """A woollen hat, a cap or a brimmed hat, above the brows."""
    face = scene.face
    cloth = hsv(face.hat_hue, 0.55, face.hat_shade)
    field = mix(cloth * 0.62, mix(cloth, WHITE, 0.12), scene.light)
    half = 47.5 * face.face_width + 0.35 * face.hair_volume
    (_paint_woollen_hat, _paint_cap, _paint_brimmed_hat)[face.hat](scene, cloth, field, half)


def _paint_woollen_hat(scene: Scene, cloth: np.ndarray, field: np.ndarray, half: float) -> None:
    dome = half_spline([(0, -93), (20, -90), (38, -77), (half, -53), (half + 1, -41)])
    scene.paint(mirrored(dome, [(0, -37)]), field)
    for x in np.linspace(-0.8, 0.8, 7):
        rib = spline([(x * 20, -91), (x * 44, -73), (x * half, -49)])
        scene.paint(stroke(rib, 1.6, 0.3), cloth * 0.6, 0.4, 0.5)
    _paint_band(scene, field * 0.85, half + 2.5, -55, -38)
    scene.paint(ellipse(0, -95, 9, 8), mix(cloth, WHITE, 0.55), 1, 0.8)


def _paint_cap(scene: Scene, cloth: np.ndarray, field: np.ndarray, half: float) -> None:
    dome = half_spline([(0, -89), (22, -85), (39, -71), (half, -51), (half + 0.5, -40)])
    scene.paint(mirrored(dome, [(0, -41)]), field)
    scene.paint(stroke(spline([(0, -89), (0.5, -67), (0, -47)]), 1.5, 0), cloth * 0.6, 0.5, 0.4)
    shadow = mirrored(spline([(0, -36), (26, -34), (43, -38), (40, -29), (0, -29)]))
    scene.paint(shadow, scene.skin_dark, 0.35, 2)
    upper = spline([(0, -52), (30, -49), (half + 1, -41)])
    lower = spline([(half + 3, -37), (28, -33), (0, -32.5)])
    scene.paint(mirrored(upper, lower), mix(cloth * 0.7, WHITE, 0.06), lift=8)
    scene.paint(ellipse(0, -89, 3, 2), cloth * 0.7)


def _paint_brimmed_hat(scene: Scene, cloth: np.ndarray, field: np.ndarray, half: float) -> None:
    crown = half_spline([(0, -91), (22, -94), (35, -87), (40, -63), (43, -45)])
    scene.paint(mirrored(crown, [(0, -41)]), field)
    _paint_band(scene, field * 0.45, 42, -60, -47)
    shadow = mirrored(spline([(0, -37), (30, -37), (43, -39), (40, -29), (0, -28)]))
    scene.paint(shadow, scene.skin_dark, 0.35, 2)
    brim = half_spline([(0, -52), (40, -50), (66, -45), (72, -39), (60, -37), (30, -36), (0, -35)])
    scene.paint(mirrored(brim), mix(field, cloth * 0.75, 0.35), lift=2)
    edge = spline([(-68, -39), (-40, -36.5), (0, -35.5), (40, -36.5), (68, -39)])
    scene.paint(stroke(edge, 1.5, 0.5), cloth * 0.5, 0.6)


def _paint_band(scene: Scene, colour: np.ndarray, half: float, top: float, bottom: float) -> None:
    upper = spline([(0, top - 2), (half * 0.6, top - 1), (half, top + 2)])
    lower = spline([(half, bottom - 2), (half * 0.6, bottom + 0.5), (0, bottom + 1.5)])
    scene.paint(mirrored(upper, lower), colour)


def paint_earrings(scene: Scene) -> None:
    """A pair of hoops, balls or drops below the ears, in front of the hair."""
    face = scene.face
    metal = METALS[face.earring_metal]
    for side in (1, -1):
        x, y = side * (46.5 * face.face_width), 14 * face.ear_size + 4
        if face.earring == Earring.HOOP:
            outline = ring(ellipse(x, y + 8, 7.5, 9), ellipse(x, y + 8, 4.2, 5.8))
            scene.paint(moved(outline, 0.8, 0.8), metal * 0.35, 0.7, 0.8)
            scene.paint(outline, metal)
        else:
            radius, length, stretch = (6.2, 3, 1) if face.earring == Earring.BALL else (5.2, 11, 1.5)
            scene.paint(stroke([(x, y - 2), (x, y + length)], 2, 0), metal * 0.7)
            scene.paint(ellipse(x, y + length, radius + 1, radius + 1), metal * 0.35, 0.6, 0.8)
            scene.paint(ellipse(x, y + length, radius, radius * stretch), metal)
            scene.paint(ellipse(x - 1.5, y + length - 2, 1.8, 1.8, count=12), WHITE, 0.8, 0.4)
