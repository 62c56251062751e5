"""Eyes, eyebrows and mouth, where expression lives; and what a face can put on: glasses, a hat, earrings."""

import numpy as np

from dime.core.drawn_faces.face import Earring, Glasses, Hat
from dime.core.drawn_faces.geometry import Curve, between, ellipse, half_spline, mirrored, moved, ring, spline, stroke
from dime.core.drawn_faces.scene import DARK, WHITE, Scene, Texture, hsv, mix, palette

EYES = palette("4a2f20 6a4526 5f7a3c 4678a8 75808a")
LIPSTICKS = palette("c2142e d61f5c a00f3c e03434 8c1650")
FRAMES = palette("1b1b20 4a2618 7a1f26 20355c 3a3a3f")
METALS = palette("f2c230 f0f2f6 2fb7c4")
NATURAL_LIP, TONGUE, TEETH, THROAT = palette("b4515a d9606c fbf8f0 4a1014")
U = np.linspace(-1, 1, 25)
ARCH = 1 - U**2


def paint_eyes(scene: Scene) -> None:
    """Both eyes; narrow ones are half closed, a smile lifts the lower lid a little."""
    face, narrow, male = scene.face, scene.has("Narrow_Eyes"), scene.has("Male")
    size = face.eye_size * (0.96 if male else 1.06)
    half = 10.6 * size
    top = (2.3 if narrow else 6.2) * size
    low = (1.9 if narrow else 4.6) * size - (0.7 if scene.has("Smiling") else 0)
    lash = mix(scene.brow_colour, DARK, 0.7)
    for side in (1, -1):
        x, y = side * (19.5 + face.eye_gap), -7.0
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
        scene.paint(stroke(upper, 1.9 if male else 3.2, 0.6), lash, 0.95)
        scene.paint(stroke(lower[3:-3], 1.1, 0.6), scene.skin_dark, 0.55)
        fold = np.stack([x + half * U, y - (top + 3.2) * ARCH**0.7 + tilt], axis=1)
        scene.paint(stroke(fold[4:-4], 1.2), scene.skin_dark, 0.5)
        for at, reach in () if male else ((24, 4.5), (21, 4), (18, 3.2)):
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
    s = np.linspace(0, 1, 25)
    for side, noise in zip((1, -1), rough, strict=True):
        x, y = side * (8.5 + face.eye_gap + 23.5 * s), height - arch * np.sin(np.pi * s**1.3) + 1.5 * s
        half = thickness / 2 * np.minimum(1, 1.25 - s) * np.minimum(1, 0.55 + 3 * s) + (noise * 2.2 if bushy else 0)
        brow = between(np.stack([x, y - half], axis=1), np.stack([x, y + half], axis=1))
        scene.paint(brow, scene.brow_colour, 0.95, 0.35)


def mouth_curves(scene: Scene) -> tuple[Curve, Curve, Curve, Curve]:
    """Top of the upper lip, its lower edge, top of the lower lip, its lower edge: each (25, 2), left to right."""
    face, smiling, open_ = scene.face, scene.has("Smiling"), scene.has("Mouth_Slightly_Open")
    half = 18.5 * face.mouth_width * (1.26 if smiling else 0.82 if open_ else 1.0)
    lift = 9.0 if smiling else face.mood
    centre = 37.5 + face.mouth_height + (2.0 if smiling else 0.0) - (1.5 if open_ else 0.0)
    gap = (10.5 if smiling else 9.0) if open_ else 0.0
    full = face.lip_fullness * (0.85 if scene.has("Male") else 1.15)
    line = centre - lift * np.abs(U) ** 1.8
    bow = 1 - 0.35 * np.exp(-((U / 0.14) ** 2)) + 0.12 * np.cos(2 * np.pi * U)
    top = line - 4.4 * full * bow * ARCH**0.8
    under = line + gap * ARCH**0.75
    low = under + 6.0 * full * (0.78 if smiling else 1) * ARCH**0.7
    return tuple(np.stack([half * U, y], axis=1) for y in (top, line, under, low))


def paint_mouth(scene: Scene) -> None:
    """Lips, teeth and the creases that a smile makes in the cheeks."""
    smiling, open_, lipstick = (scene.has(n) for n in ("Smiling", "Mouth_Slightly_Open", "Wearing_Lipstick"))
    top, line, under, low = mouth_curves(scene)
    for side, (x, y) in zip((-1, 1), line[[0, -1]], strict=True) if smiling else ():
        crease = spline([(x + side * 1.5, y - 7), (x + side * 5, y - 1), (x + side * 3.5, y + 6)])
        scene.paint(stroke(crease, 1.9, 0.8), scene.skin_dark, 0.6, 0.4)
        scene.paint(ellipse(x + side * 0.5, y, 2, 2, count=12), scene.skin_dark, 0.5, 0.8)
        scene.paint(ellipse(side * 27, 15, 8, 5), WHITE, 0.14, 2.5)
        scene.paint(ellipse(side * 29, 22.5, 9, 2), scene.skin_dark, 0.16, 1.5)
    lip = LIPSTICKS[scene.face.lipstick] if lipstick else mix(scene.skin_base * 0.86, NATURAL_LIP, 0.34)
    scene.paint(between(top, low), lip, 1.0 if lipstick else 0.92, 0.0 if lipstick else 0.4)
    scene.paint(between(top, line), lip * 0.82, 0.8)
    if open_:
        opening = between(line, under)
        inside = scene.mask(opening)
        scene.paint(opening, THROAT)
        scene.paint(ellipse(0, under[:, 1].max() + 1, 10, 4.5), TONGUE, 0.9, 0.8, inside=inside)
        scene.paint(between(moved(line, 0, -2), moved(line, 0, 5.6 if smiling else 2.0)), TEETH, inside=inside)
    scene.paint(stroke(line, 1.9, 0.5), mix(lip * 0.35, DARK, 0.4), 0.9, 0.2)
    shine = ellipse(0, (under[12, 1] + low[12, 1]) / 2, 6, 1.3)
    scene.paint(shine, WHITE, 0.45 if lipstick else 0.2, 0.8)
    scene.paint(ellipse(0, low[12, 1] + 3.5, 9, 1.8), scene.skin_dark, 0.25, 1.5)


LENSES = {
    Glasses.ROUND: ellipse(0, 0, 14.4, 13.2, count=40),
    Glasses.SQUARE: spline(
        [(-13, -10.5), (0, -11.5), (14, -11), (15, 0), (13, 10.5), (0, 11.5), (-12, 10.5), (-14, 0)], closed=True
    ),
    Glasses.HALF_MOON: spline(
        [(-13, -9), (0, -11), (14, -12), (16, -5), (10, 10), (0, 13), (-10, 10), (-14.5, -2)], closed=True
    ),
}
"""The outer edge of a right-hand lens around its centre."""


def paint_glasses(scene: Scene) -> None:
    """Frames of three shapes in front of the eyes."""
    face, lens, width = scene.face, LENSES[scene.face.glasses], 3.3
    frame = FRAMES[face.glasses_colour]
    for side in (1, -1):
        centre = np.array([side * (20 + face.eye_gap), -4])
        inner = lens * (side * 0.80, 0.78) + centre
        scene.paint(inner, WHITE, 0.10, lift=6)
        outline = ring(lens * (side, 1) + centre, inner)
        scene.paint(moved(outline, 0, 1.6), scene.skin_dark, 0.30, 1.2, lift=4)
        scene.paint(outline, frame, lift=6)
        gleam = np.array([(-7, -2), (1, -13), (4.5, -13), (-3.5, -2)]) + centre
        scene.paint(gleam, WHITE, 0.22, 0.4, lift=6)
        arm = np.array([(side * (34 + face.eye_gap), -9), (side * 46 * face.face_width, -6)])
        scene.paint(stroke(arm, width, 0), frame, lift=1)
    bridge = spline([(-6.5 - face.eye_gap, -6), (0, -9), (6.5 + face.eye_gap, -6)])
    scene.paint(stroke(bridge, width, 0), frame, lift=7)


def paint_hat(scene: Scene) -> None:
    """A woollen hat, a cap or a brimmed hat, above the brows."""
    face = scene.face
    cloth = hsv(face.hat_hue, 0.55, face.hat_shade)
    lit = mix(cloth * 0.62, mix(cloth, WHITE, 0.12), scene.light)
    half = 47.5 * face.face_width + 0.35 * face.hair_volume

    def band(colour: np.ndarray, half: float, top: float, bottom: float) -> None:
        upper = spline([(0, top - 2), (half * 0.6, top - 1), (half, top + 2)])
        lower = spline([(half, bottom - 2), (half * 0.6, bottom + 0.5), (0, bottom + 1.5)])
        scene.paint(mirrored(upper, lower), colour)

    if face.hat == Hat.WOOLLEN:
        dome = half_spline([(0, -93), (20, -90), (38, -77), (half, -53), (half + 1, -41)])
        scene.paint(mirrored(dome, [(0, -37)]), lit)
        for x in np.linspace(-0.8, 0.8, 7):
            rib = spline([(x * 20, -91), (x * 44, -73), (x * half, -49)])
            scene.paint(stroke(rib, 1.6, 0.3), cloth * 0.6, 0.4, 0.5)
        band(lit * 0.85, half + 2.5, -55, -38)
        scene.paint(ellipse(0, -95, 9, 8), mix(cloth, WHITE, 0.55), 1, 0.8)
    elif face.hat == Hat.CAP:
        dome = half_spline([(0, -89), (22, -85), (39, -71), (half, -51), (half + 0.5, -40)])
        scene.paint(mirrored(dome, [(0, -41)]), lit)
        scene.paint(stroke(spline([(0, -89), (0.5, -67), (0, -47)]), 1.5, 0), cloth * 0.6, 0.5, 0.4)
        shadow = mirrored(spline([(0, -36), (26, -34), (43, -38), (40, -29), (0, -29)]))
        scene.paint(shadow, scene.skin_dark, 0.35, 2)
        upper = spline([(0, -52), (30, -49), (half + 1, -41)])
        lower = spline([(half + 3, -37), (28, -33), (0, -32.5)])
        scene.paint(mirrored(upper, lower), mix(cloth * 0.7, WHITE, 0.06), lift=8)
        scene.paint(ellipse(0, -89, 3, 2), cloth * 0.7)
    else:
        crown = half_spline([(0, -91), (22, -94), (35, -87), (40, -63), (43, -45)])
        scene.paint(mirrored(crown, [(0, -41)]), lit)
        band(lit * 0.45, 42, -60, -47)
        shadow = mirrored(spline([(0, -37), (30, -37), (43, -39), (40, -29), (0, -28)]))
        scene.paint(shadow, scene.skin_dark, 0.35, 2)
        brim = half_spline([(0, -52), (40, -50), (66, -45), (72, -39), (60, -37), (30, -36), (0, -35)])
        scene.paint(mirrored(brim), mix(lit, cloth * 0.75, 0.35), lift=2)
        edge = spline([(-68, -39), (-40, -36.5), (0, -35.5), (40, -36.5), (68, -39)])
        scene.paint(stroke(edge, 1.5, 0.5), cloth * 0.5, 0.6)


def paint_earrings(scene: Scene) -> None:
    """A pair of hoops, balls or drops below the ears, in front of the hair."""
    face, metal = scene.face, METALS[scene.face.earring_metal]
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
