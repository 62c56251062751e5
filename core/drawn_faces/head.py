"""The head and what stands behind it: background, clothes, neck, ears, skin and nose, then the hair."""

import numpy as np

from dime.core.drawn_faces.face import Backdrop, Clothes, HairLength
from dime.core.drawn_faces.features import mouth_curves
from dime.core.drawn_faces.geometry import Curve, between, ellipse, half_spline, mirrored, moved, spline, stroke
from dime.core.drawn_faces.scene import DARK, WHITE, Scene, Texture, hsv, mix, palette

(BLUSH,) = palette("ff2f4e")


def paint_background(scene: Scene) -> None:
    """Fill the whole picture: gradient, bokeh, stripes, a room's corner or clouds."""
    face, (width, height) = scene.face, scene.size
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
        share = 0.5 + 0.6 * scene.hills(rng, 45)
    scene.pixels[:] = mix(first, second, share.clip(0, 1))
    if face.backdrop == Backdrop.BOKEH:
        for _ in range(9):
            place = rng.random(2) * (width, height)
            radius = (8 + 16 * rng.random()) * scene.unit
            tint = mix(hsv(face.backdrop_hue + 0.2 * rng.random() - 0.1, 0.3, 1.0), WHITE, 0.3)
            scene.fill(ellipse(*place, radius, radius), tint, 0.10 + 0.25 * rng.random(), 1.5)


def paint_clothes(scene: Scene) -> None:
    """Shoulders in cloth; the neck is painted over them."""
    cloth = hsv(scene.face.clothes_hue, 0.45, scene.face.clothes_shade)
    right = spline([(0, 68), (20, 70), (34, 76), (58, 83), (82, 92), (98, 112)])
    scene.fill(scene.on_body(mirrored(right, [(98, 140)])), cloth)
    for side in (1, -1):
        seam = spline([(52 * side, 84), (48 * side, 100), (50 * side, 140)])
        scene.fill(scene.on_body(stroke(seam, 2)), cloth * 0.7, 0.6, 0.8)


def paint_neck(scene: Scene) -> None:
    """The neck down to the neckline, in the shadow of the chin."""
    face, half = scene.face, 25.0 if scene.has("Male") else 20.5
    bottom = {Clothes.ROUND_NECK: 86, Clothes.SHIRT: 80, Clothes.V_NECK: 96}[face.clothes]
    side = spline([(half - 1, 30), (half - 1, 60), (half + 1.5, 74), (half + 10, 79)])
    tip = half_spline([(half + 10, 79), (half * 0.7, bottom - 3), (0, bottom)])
    scene.fill(scene.on_body(mirrored(side, tip[1:])), scene.skin)
    shade = mirrored(side[:14], [(half, 70), (half * 0.6, 76), (0, 79)])
    scene.fill(scene.on_body(shade), scene.skin_dark, 0.62, 2.5)
    if face.clothes == Clothes.SHIRT:
        cloth = mix(hsv(face.clothes_hue, 0.35, face.clothes_shade), WHITE, 0.25)
        for sign in (1, -1):
            collar = np.array([(half - 1, 72), (half + 13, 78), (half + 4, 100), (3, 88)]) * (sign, 1)
            scene.fill(scene.on_body(collar), cloth)


def paint_ears(scene: Scene) -> None:
    """Both ears; hair may cover them."""
    size = scene.face.ear_size
    for sign in (1, -1):
        x = sign * 44.5 * scene.face.face_width
        scene.paint(ellipse(x, 3, 7 * size, 13 * size), scene.skin)
        scene.paint(ellipse(x + sign, 3, 4 * size, 8.5 * size), scene.skin_dark, 0.32, 1)


def jaw_right(scene: Scene) -> Curve:
    """The right half of the face's outline from the cheekbone down to the chin, (N, 2)."""
    face, width = scene.face, scene.face.face_width
    cheek, jaw, chin = (41.5, 36.5, 19.5) if scene.has("Male") else (38.5, 30.0, 11.0)
    upper = [(44 * width, -4), (43.5 * width, 14), (cheek * width, 30)]
    lower = [((jaw + face.jaw) * width, 47 + face.chin * 0.6), (chin * width, 63 + face.chin), (0, 66.5 + face.chin)]
    return half_spline([*upper, *lower])


def paint_head(scene: Scene) -> None:
    """The skin of head and face, softly modelled, with the colour of the cheeks and freckles."""
    face = scene.face
    skull = half_spline([(0, -67), (18, -64), (34, -52), (42, -32), (44.5, -14), (44, -4)])[:-1] * (face.face_width, 1)
    outline = mirrored(skull, jaw_right(scene))
    scene.paint(outline, scene.skin)
    inside = scene.mask(outline)
    for sign in (1, -1):
        scene.paint(ellipse(sign * 19.5, -9, 13, 8), scene.skin_dark, 0.16, 3.5, inside=inside)
    if scene.has("Bald"):
        scene.paint(ellipse(face.light_angle * 0.28, -50, 14, 6), WHITE, 0.40 * face.light_strength, 3.5, inside=inside)
    blush = mix(BLUSH, scene.skin_base * (1, 0.3, 0.3), 0.25)
    for sign in (1, -1):
        if scene.has("Rosy_Cheeks"):
            scene.paint(ellipse(sign * 27, 17, 11.5, 8), blush, 0.60, 3.2, inside=inside)
        scene.paint(ellipse(sign * 26, 17, 10, 8), blush, 0.10 * face.blush, 4, inside=inside)
    if face.freckles > 0:
        for x, y in scene.random(Texture.FRECKLES).random((14, 2)) * (56, 12) + (-28, 6):
            scene.paint(ellipse(x, y, 0.8, 0.8, count=8), scene.skin_dark, 0.5 * face.freckles)


def paint_age(scene: Scene) -> None:
    """Lines on the forehead, at the eyes and beside the mouth; bags under the eyes; hollow cheeks."""
    dark, depth = scene.skin_dark, scene.face.wrinkle_depth

    def fold(points: list[tuple[float, float]], width: float = 2.3, opacity: float = 0.75) -> None:
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
    face, big, dark = scene.face, scene.has("Big_Nose"), scene.skin_dark
    width = (1.75 if big else 1.0) * face.nose_width
    tip = 19 + face.nose_length + (2.5 if big else 0)
    away = -1 if face.light_angle > 0 else 1  # the side in shadow
    bridge = [(away * 3.5, -6), (away * 4 * width, 6), (away * 6.2 * width, tip)]
    scene.paint(stroke(spline(bridge), 5 * width, 0.6), dark, 0.26, 2, lift=8)
    if big:
        ball = ellipse(0, tip - 2.5, 13.5 * face.nose_width, 9.5)
        scene.paint(ball, mix(scene.skin, BLUSH, 0.10), 1, 0.8, lift=9)
        scene.paint(ellipse(0, tip - 1.5, 13.5 * face.nose_width, 9, 10, 170), dark, 0.30, 1.6, lift=9)
    scene.paint(ellipse(0, tip + 3.6, 8 * width, 2.6), dark, 0.40, 1.4, lift=8)
    for side in (1, -1):
        wing = spline([(side * 6.4 * width, tip - 4.5), (side * 9.2 * width, tip), (side * 6.6 * width, tip + 3.6)])
        scene.paint(stroke(wing, 2.0, 0.7), dark, 0.72, 0.3, lift=8)
        scene.paint(ellipse(side * 3.9 * width, tip + 2.6, 2.3 * width, 1.4), dark * 0.6, 0.85, 0.3, lift=8)
    scene.paint(ellipse(-away * 1.2, tip - 5, 2.6 * width, 3), WHITE, 0.26 * face.light_strength, 1.4, lift=11)


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
