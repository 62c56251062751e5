"""Eyes, eyebrows and mouth: where expression lives."""

from __future__ import annotations

import numpy as np

from dime.core.drawn_faces.geometry import Curve, between, ellipse, moved, spline, stroke
from dime.core.drawn_faces.scene import DARK, EYES, LIPSTICKS, TEETH, WHITE, Scene, Texture, mix, rgb

NATURAL_LIP = rgb("b4515a")
TONGUE = rgb("d9606c")
U = np.linspace(-1, 1, 25)
ARCH = 1 - U**2


def paint_eyes(scene: Scene) -> None:
    """Both eyes; narrow ones are half closed, a smile lifts the lower lid a little."""
    for side in (1, -1):
        _paint_eye(scene, side)


def _paint_eye(scene: Scene, side: int) -> None:
    face, narrow, male = scene.face, scene.has("Narrow_Eyes"), scene.has("Male")
    x, y = side * (19.5 + face.eye_gap), -7.0
    size = face.eye_size * (0.96 if male else 1.06)
    half = 10.6 * size
    top = (2.3 if narrow else 6.2) * size
    low = (1.9 if narrow else 4.6) * size - (0.7 if scene.has("Smiling") else 0)
    tilt = -face.eye_tilt * side * U
    upper = np.stack([x + half * U, y - top * ARCH**0.8 + tilt], axis=1)
    lower = np.stack([x + half * U, y + low * ARCH + tilt], axis=1)
    almond = between(upper, lower)
    inside = scene.mask(almond)
    scene.paint(almond, mix(WHITE, scene.skin_base, 0.10))
    iris = x + face.gaze, y - 0.5
    scene.paint(ellipse(*iris, 5.9, 6.1), EYES[face.eye_colour] * 0.75, inside=inside)
    scene.paint(ellipse(iris[0], iris[1] + 1, 4.4, 4.4), EYES[face.eye_colour] * 1.15, 0.8, 0.8, inside=inside)
    scene.paint(ellipse(*iris, 2.8, 2.9), DARK * 0.4, inside=inside)
    glint = iris[0] + 0.02 * face.light_angle, iris[1] - 2
    scene.paint(ellipse(*glint, 1.4, 1.4, count=12), WHITE, 0.95, inside=inside)
    scene.paint(stroke(moved(upper, 0, 1.2), 3), DARK, 0.30, 1, inside=inside)
    lash = mix(scene.brow_colour, DARK, 0.7)
    scene.paint(stroke(upper, 1.9 if male else 3.2, 0.6), lash, 0.95)
    scene.paint(stroke(lower[3:-3], 1.1, 0.6), scene.skin_dark, 0.55)
    fold = np.stack([x + half * U, y - (top + 3.2) * ARCH**0.7 + tilt], axis=1)
    scene.paint(stroke(fold[4:-4], 1.2), scene.skin_dark, 0.5)
    if not male:
        for at, reach in ((24, 4.5), (21, 4), (18, 3.2)):
            root = upper[at if side > 0 else 24 - at]
            lashes = np.array([(0, 0), (side * 0.5, -0.3), (side, -0.85)]) * reach
            scene.paint(stroke(lashes + root, 1.7, 0.6), lash, 0.95)


def paint_brows(scene: Scene) -> None:
    """Both eyebrows: thicker and lower on men, broad and rough when bushy."""
    face, male, bushy = scene.face, scene.has("Male"), scene.has("Bushy_Eyebrows")
    thickness = (4.4 if male else 2.9) + (5.8 if bushy else 0)
    height = -19.5 + face.brow_height + (1.0 if male else -1.0) - (2.0 if bushy else 0)
    arch = face.brow_arch * (0.6 if bushy else 0.7 if male else 1.2)
    rough = scene.random(Texture.BROWS).random((2, 13)).repeat(2, axis=1)[:, :25] - 0.5
    for side, noise in zip((1, -1), rough, strict=True):
        s = np.linspace(0, 1, 25)
        line = np.stack(
            [side * (8.5 + face.eye_gap + 23.5 * s), height - arch * np.sin(np.pi * s**1.3) + 1.5 * s], axis=1
        )
        half = thickness / 2 * np.minimum(1, 1.25 - s) * np.minimum(1, 0.55 + 3 * s)
        half = half + (noise * 2.2 if bushy else 0)
        up, down = line - np.stack([0 * s, half], axis=1), line + np.stack([0 * s, half], axis=1)
        scene.paint(between(up, down), scene.brow_colour, 0.95, 0.35)


def mouth_curves(scene: Scene) -> tuple[Curve, Curve, Curve, Curve]:
    """Top of the upper lip, its lower edge, top of the lower lip, its lower edge: each (25, 2), left to right."""
    face, smiling, open_ = scene.face, scene.has("Smiling"), scene.has("Mouth_Slightly_Open")
    half = 18.5 * face.mouth_width * (1.26 if smiling else 0.82 if open_ else 1.0)
    lift = 9.0 if smiling else face.mood
    centre = 37.5 + face.mouth_height + (2.0 if smiling else 0.0) - (1.5 if open_ else 0.0)
    gap = (10.5 if smiling else 9.0) if open_ else 0.0
    full = face.lip_fullness * (0.85 if scene.has("Male") else 1.15)
    x = half * U
    line = centre - lift * np.abs(U) ** 1.8
    bow = 1 - 0.35 * np.exp(-((U / 0.14) ** 2)) + 0.12 * np.cos(2 * np.pi * U)
    top = line - 4.4 * full * bow * ARCH**0.8
    under = line + gap * ARCH**0.75
    low = under + 6.0 * full * (0.78 if smiling else 1) * ARCH**0.7
    return tuple(np.stack([x, y], axis=1) for y in (top, line, under, low))


def paint_mouth(scene: Scene) -> None:
    """Lips, teeth and the creases that a smile makes in the cheeks."""
    smiling, open_, lipstick = (scene.has(n) for n in ("Smiling", "Mouth_Slightly_Open", "Wearing_Lipstick"))
    top, line, under, low = mouth_curves(scene)
    if smiling:
        _paint_smile_creases(scene, line)
    natural = mix(scene.skin_base * 0.86, NATURAL_LIP, 0.34)
    lip = LIPSTICKS[scene.face.lipstick] if lipstick else natural
    scene.paint(between(top, low), lip, 1.0 if lipstick else 0.92, 0.0 if lipstick else 0.4)
    scene.paint(between(top, line), lip * 0.82, 0.8)
    if open_:
        opening = between(line, under)
        inside = scene.mask(opening)
        scene.paint(opening, rgb("4a1014"))
        bottom = under[:, 1].max()
        scene.paint(ellipse(0, bottom + 1, 10, 4.5), TONGUE, 0.9, 0.8, inside=inside)
        teeth = between(moved(line, 0, -2), moved(line, 0, 5.6 if smiling else 2.0))
        scene.paint(teeth, TEETH, inside=inside)
    scene.paint(stroke(line, 1.9, 0.5), mix(lip * 0.35, DARK, 0.4), 0.9, 0.2)
    shine = ellipse(0, (under[12, 1] + low[12, 1]) / 2, 6, 1.3)
    scene.paint(shine, WHITE, 0.45 if lipstick else 0.2, 0.8)
    scene.paint(ellipse(0, low[12, 1] + 3.5, 9, 1.8), scene.skin_dark, 0.25, 1.5)


def _paint_smile_creases(scene: Scene, line: Curve) -> None:
    for side, corner in ((-1, line[0]), (1, line[-1])):
        x, y = corner
        crease = spline([(x + side * 1.5, y - 7), (x + side * 5, y - 1), (x + side * 3.5, y + 6)])
        scene.paint(stroke(crease, 1.9, 0.8), scene.skin_dark, 0.6, 0.4)
        scene.paint(ellipse(x + side * 0.5, y, 2, 2, count=12), scene.skin_dark, 0.5, 0.8)
        scene.paint(ellipse(side * 27, 15, 8, 5), WHITE, 0.14, 2.5)
        scene.paint(ellipse(side * 29, 22.5, 9, 2), scene.skin_dark, 0.16, 1.5)
