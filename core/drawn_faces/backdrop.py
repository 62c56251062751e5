"""Behind the face: the background and the clothes."""

from __future__ import annotations

import numpy as np

from dime.core.drawn_faces.canvas import smooth_noise
from dime.core.drawn_faces.face import Backdrop, Clothes
from dime.core.drawn_faces.geometry import ellipse, half_spline, mirrored, spline, stroke
from dime.core.drawn_faces.scene import WHITE, Scene, Texture, hsv, mix


def paint_background(scene: Scene) -> None:
    """Fill the whole picture: gradient, bokeh, stripes, a room's corner or clouds."""
    face, canvas = scene.face, scene.canvas
    width, height = scene.pose.size
    first = hsv(face.backdrop_hue, 0.15 + 0.25 * abs(face.backdrop_contrast), face.backdrop_shade)
    second = hsv(face.backdrop_hue + 0.12 * face.backdrop_contrast, 0.30, np.clip(face.backdrop_shade - 0.22, 0.15, 1))
    x, y = np.meshgrid(np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32))
    angle = np.radians(face.backdrop_angle)
    along = np.cos(angle) * x + np.sin(angle) * y
    share = 0.5 + 0.5 * along
    rng = scene.random(Texture.BACKDROP)
    if face.backdrop == Backdrop.STRIPES:
        share = 0.35 * share + 0.3 * (1 + np.tanh(4 * np.sin(along * 9 + face.backdrop_shade * 20)))
    elif face.backdrop == Backdrop.ROOM:
        share = 0.25 * share + 0.6 * (1 / (1 + np.exp(-40 * (x - 0.6 * np.cos(angle) - 0.15 * y))))
    elif face.backdrop == Backdrop.CLOUDS:
        share = 0.5 + 0.6 * smooth_noise(rng, scene.pose.size, 45 * scene.pose.pixels)
    canvas.pixels[:] = mix(first, second, share.clip(0, 1))
    if face.backdrop == Backdrop.BOKEH:
        for _ in range(9):
            place = rng.random(2) * (width, height)
            radius = (8 + 16 * rng.random()) * scene.pose.pixels
            tint = mix(hsv(face.backdrop_hue + 0.2 * rng.random() - 0.1, 0.3, 1.0), WHITE, 0.3)
            canvas.fill(ellipse(*place, radius, radius), tint, 0.10 + 0.25 * rng.random(), 1.5 * scene.pose.pixels)


def paint_clothes(scene: Scene) -> None:
    """Shoulders in cloth; the neck is painted over them."""
    face = scene.face
    cloth = hsv(face.clothes_hue, 0.45, face.clothes_shade)
    right = spline([(0, 68), (20, 70), (34, 76), (58, 83), (82, 92), (98, 112)])
    shoulders = mirrored(right, [(98, 140)])
    scene.paint_body(shoulders, cloth)
    for side in (1, -1):
        seam = spline([(52 * side, 84), (48 * side, 100), (50 * side, 140)])
        scene.paint_body(stroke(seam, 2), cloth * 0.7, 0.6, 0.8)


def paint_neck(scene: Scene) -> None:
    """The neck down to the neckline, in the shadow of the chin."""
    face = scene.face
    half = 25.0 if scene.has("Male") else 20.5
    bottom = {Clothes.ROUND_NECK: 86, Clothes.SHIRT: 80, Clothes.V_NECK: 96}[face.clothes]
    side = spline([(half - 1, 30), (half - 1, 60), (half + 1.5, 74), (half + 10, 79)])
    tip = half_spline([(half + 10, 79), (half * 0.7, bottom - 3), (0, bottom)])
    scene.paint_body(mirrored(side, tip[1:]), scene.skin)
    shade = mirrored(side[:14], [(half, 70), (half * 0.6, 76), (0, 79)])
    scene.paint_body(shade, scene.skin_dark, 0.62, 2.5)
    if face.clothes == Clothes.SHIRT:
        cloth = mix(hsv(face.clothes_hue, 0.35, face.clothes_shade), WHITE, 0.25)
        for sign in (1, -1):
            collar = np.array([(half - 1, 72), (half + 13, 78), (half + 4, 100), (3, 88)]) * (sign, 1)
            scene.paint_body(collar, cloth)
