"""A face as numbers: which attributes it has (natural correlations, planted shortcuts), and what else can vary."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import IntEnum
from functools import lru_cache
from itertools import combinations

import numpy as np

from dime.core.datasets import ATTRIBUTES
from dime.core.errors import InputError

NATURAL: dict[str, tuple[tuple[str, float], ...]] = {
    "Male": (("", 0.45),),
    "Young": (("", 0.65),),
    "Smiling": (("Male", 0.42), ("", 0.56)),
    "Mouth_Slightly_Open": (("Smiling", 0.68), ("", 0.30)),
    "Bald": (("Male -Young", 0.30), ("Male", 0.09), ("", 0.01)),
    "Gray_Hair": (("-Young", 0.42), ("", 0.04)),
    "Blond_Hair": (("-Male", 0.32), ("", 0.15)),
    "Black_Hair": (("", 0.42),),
    "Brown_Hair": (("", 0.72),),
    "Bangs": (("Male", 0.12), ("Young", 0.34), ("", 0.20)),
    "Wearing_Hat": (("Male", 0.15), ("", 0.10)),
    "Eyeglasses": (("-Young", 0.32), ("", 0.15)),
    "No_Beard": (("-Male", 1.00), ("Young", 0.75), ("", 0.62)),
    "Mustache": (("-Male", 0.00), ("-No_Beard", 0.65), ("", 0.16)),
    "Wearing_Lipstick": (("Male", 0.01), ("", 0.60)),
    "Rosy_Cheeks": (("Wearing_Lipstick", 0.34), ("Male", 0.08), ("", 0.16)),
    "Wearing_Earrings": (("Male", 0.04), ("", 0.40)),
    "Bushy_Eyebrows": (("Male", 0.30), ("", 0.08)),
    "Big_Nose": (("Male -Young", 0.45), ("Male", 0.30), ("", 0.15)),
    "Narrow_Eyes": (("", 0.15),),
    "Pale_Skin": (("", 0.13),),
}
"""The natural correlations: for each drawn attribute, the probability that a face has it, given attributes settled
before it. The first row whose condition holds counts; `Male -Young` reads "Male, and not Young"; an empty condition
always holds. Order matters only to EXCLUSIVE."""

DRAWN = tuple(name for name in ATTRIBUTES if name in NATURAL)
"""The attributes that change the picture, in CelebA's order. All others are labelled -1 on every face."""

HAIR_COLOURS = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair")

EXCLUSIVE: tuple[frozenset[str], ...] = (frozenset({"Bald", *HAIR_COLOURS}), frozenset({"Bald", "Bangs"}))
"""A face has at most one attribute of each group: what is settled later gives way to what was settled earlier, so
a hair colour's row in NATURAL is a probability given that no earlier one was drawn. Hair of none of the four
colours is auburn."""


@dataclass(frozen=True)
class Correlation:
    """A planted shortcut: `follower` has the value of `leader` with probability `agreement`, whatever else holds.

    It replaces the follower's rows in NATURAL, so P(follower | leader) = P(not follower | not leader) = agreement:
    1 ties them, 0.5 makes them independent, 0 makes them opposites.
    """

    leader: str
    follower: str
    agreement: float

    def __str__(self) -> str:
        return f"{self.leader}:{self.follower}={self.agreement:g}"

    @classmethod
    def parse(cls, text: str) -> "Correlation":
        """Read `Smiling:Eyeglasses=0.9`. Raises InputError for another form, name or probability."""
        found = re.fullmatch(r"(\w+):(\w+)=(0|1|[01]?\.\d+)", text)
        if not found or float(found[3]) > 1:
            expected = "LEADER:FOLLOWER=P with P in 0..1, as in Smiling:Eyeglasses=0.9"
            raise InputError(f"correlation {text!r}: expected {expected}")
        leader, follower, agreement = found[1], found[2], float(found[3])
        require_drawn(leader)
        require_drawn(follower)
        if leader == follower or excludes(leader, follower):
            raise InputError(f"correlation {text!r}: a face cannot choose {leader} and {follower} freely of each other")
        return cls(leader, follower, agreement)


def require_drawn(name: str) -> None:
    """Raise InputError unless `name` is an attribute that is really drawn."""
    if name not in NATURAL:
        kind = "is not drawn" if name in ATTRIBUTES else "is no attribute of CelebA"
        raise InputError(f"attribute {name!r} {kind}; drawn are {', '.join(DRAWN)}")


def excludes(one: str, other: str) -> bool:
    """Whether no face can have both attributes."""
    return one != other and any(one in group and other in group for group in EXCLUSIVE)


def natural_probability(name: str, chosen: Iterable[str]) -> float:
    """The first row of NATURAL[name] whose condition holds for the attributes chosen so far."""
    chosen = frozenset(chosen)
    return next(p for condition, p in NATURAL[name] if holds(condition, chosen))


def holds(condition: str, chosen: frozenset[str]) -> bool:
    """Whether a condition of NATURAL is true of these attributes."""
    return all((word.lstrip("-") in chosen) != word.startswith("-") for word in condition.split())


@lru_cache
def settling_order(correlations: tuple[Correlation, ...] = ()) -> tuple[str, ...]:
    """The drawn attributes, each after those its probability depends on; planted hair before other hair.

    Raises InputError when an attribute follows two leaders, when two followers exclude each other, or when
    attributes depend on each other in a circle.
    """
    planted = {correlation.follower: correlation.leader for correlation in correlations}
    for one, other in combinations((correlation.follower for correlation in correlations), 2):
        if one == other or excludes(one, other):
            raise InputError(f"correlations: {one} and {other} cannot both be planted; keep one")
    depends = {
        name: {planted[name]} if name in planted else {word.lstrip("-") for row, _ in rows for word in row.split()}
        for name, rows in NATURAL.items()
    }
    order: dict[str, None] = {}

    def settle(name: str, before: tuple[str, ...] = ()) -> None:
        if name in before:
            loop = " -> ".join((*before[before.index(name) :], name))
            raise InputError(f"correlations: attributes depend on each other in a circle ({loop}); swap the two names")
        for other in NATURAL:  # in the table's order, so that the result does not depend on set order
            if other in depends[name] - order.keys():
                settle(other, (*before, name))
        order.setdefault(name)

    choosy = [name for name in planted if any(name in group for group in EXCLUSIVE)]
    for name in (*choosy, *NATURAL):
        settle(name)
    return tuple(order)


AUBURN = "Auburn_Hair"
"""The hair colour that is none of CelebA's four."""

HairLength = IntEnum("HairLength", ["SHORT", "JAW", "SHOULDERS"], start=0)
Hat = IntEnum("Hat", ["WOOLLEN", "CAP", "BRIMMED"], start=0)
Glasses = IntEnum("Glasses", ["ROUND", "SQUARE", "HALF_MOON"], start=0)
Earring = IntEnum("Earring", ["HOOP", "BALL", "DROP"], start=0)
Clothes = IntEnum("Clothes", ["ROUND_NECK", "SHIRT", "V_NECK"], start=0)
Backdrop = IntEnum("Backdrop", ["GRADIENT", "BOKEH", "STRIPES", "ROOM", "CLOUDS"], start=0)


def between(low: float, high: float) -> float:
    """A number of the face, uniform in [low, high]."""
    return field(metadata={"from_uniform": lambda u: round(low + u * (high - low), 4)})


def one_of(count: int) -> int:
    """A choice of the face: a whole number in 0..count-1, all equally likely."""
    return field(metadata={"from_uniform": lambda u: int(u * count)})


@dataclass(frozen=True)
class Face:
    """Everything that is needed to draw one face.

    Lengths are pixels of a 178x218 picture at scale 1, tones lie in [-1, 1] or [0, 1] along a palette. No number
    depends on an attribute (hair length excepted, see sample_face), so an attribute can be changed alone.
    """

    seed: int
    index: int
    has: frozenset[str]  # the drawn attributes that the face has
    hair: str  # the colour of the hair, also where the head is bald: one of HAIR_COLOURS or AUBURN
    other_hair: str  # the colour that the hair takes when `hair` is taken away
    hair_length: int  # of HairLength

    # pose
    roll: float = between(-7, 7)  # degrees in the image plane
    yaw: float = between(-15, 15)  # degrees about the vertical axis
    nod: float = between(-3, 3)  # how far the features move down the face
    scale: float = between(0.93, 1.07)
    shift_x: float = between(-4, 4)
    shift_y: float = between(-4, 4)

    # head
    face_width: float = between(0.94, 1.07)
    chin: float = between(-4, 4)  # added to the length of the face
    jaw: float = between(-2, 2)  # added to the half-width of the jaw
    skin_tone: float = between(0, 1)  # fair to dark
    skin_warmth: float = between(-1, 1)
    ear_size: float = between(0.9, 1.15)
    blush: float = between(0, 1)
    freckles: float = between(-2, 1)  # none below 0

    # features
    eye_gap: float = between(-1.5, 1.5)
    eye_size: float = between(0.92, 1.1)
    eye_tilt: float = between(-1, 1.6)
    eye_colour: int = one_of(5)
    gaze: float = between(-1.5, 1.5)
    brow_arch: float = between(1, 4.5)
    brow_height: float = between(-1.5, 1.5)
    nose_length: float = between(-2, 2.5)
    nose_width: float = between(0.92, 1.1)
    mouth_width: float = between(0.93, 1.07)
    mouth_height: float = between(-1.5, 1.5)
    lip_fullness: float = between(0.8, 1.2)
    mood: float = between(-1, 1)  # how far the corners of a mouth at rest point up
    lipstick: int = one_of(5)
    wrinkle_depth: float = between(0.8, 1.1)

    # hair
    hair_tint: float = between(-1, 1)  # darker to lighter, within its colour
    hair_volume: float = between(5, 13)
    hair_wave: float = between(0, 1)  # straight to curly
    part: float = between(-22, 22)  # where the parting stands
    hairline: float = between(-56, -48)
    hair_fall: float = between(-3, 5)  # how far the hair comes in at the temples
    fringe: float = between(-31, -26)  # lower edge of bangs
    fringe_slant: float = between(-3, 3)
    beard_height: float = between(-4, 4)
    mustache_width: float = between(18, 23)

    # things worn
    glasses: int = one_of(len(Glasses))
    glasses_colour: int = one_of(5)
    hat: int = one_of(len(Hat))
    hat_hue: float = between(0, 1)
    hat_shade: float = between(0.35, 0.85)
    earring: int = one_of(len(Earring))
    earring_metal: int = one_of(3)
    clothes: int = one_of(len(Clothes))
    clothes_hue: float = between(0, 1)
    clothes_shade: float = between(0.2, 0.9)

    # around the face
    backdrop: int = one_of(len(Backdrop))
    backdrop_hue: float = between(0, 1)
    backdrop_contrast: float = between(-1, 1)  # how the second hue differs from the first
    backdrop_shade: float = between(0.4, 1)
    backdrop_angle: float = between(0, 360)
    light_angle: float = between(-70, 70)  # degrees from straight above, positive to the right
    light_strength: float = between(0.5, 1)
    exposure: float = between(0.94, 1.05)
    white_balance: float = between(-1, 1)  # cold to warm
    grain: float = between(0.5, 2.5)  # standard deviation of the noise, in grey levels

    def to_dict(self) -> dict:
        """The face as plain numbers, strings and lists, for JSON."""
        return asdict(self) | {"has": [name for name in DRAWN if name in self.has]}

    @classmethod
    def from_dict(cls, values: Mapping) -> "Face":
        """The inverse of to_dict. Raises InputError when a number is missing or unknown."""
        known = {entry.name for entry in fields(cls)}
        if set(values) != known:
            odd = ", ".join(sorted(set(values) ^ known))
            raise InputError(f"a stored face does not fit this version of the drawer ({odd}); draw the faces again")
        return cls(**dict(values) | {"has": frozenset(values["has"])})


def sample_face(seed: int, index: int, correlations: Iterable[Correlation] = ()) -> Face:
    """Face number `index` (>= 0) of the set `seed` (>= 0). It depends on nothing else: not on other faces.

    Each attribute has a random number of its own, so a planted correlation changes its follower, what depends on it or
    gives way to it, and nothing else. The numbers of the face do not depend on attributes, but for hair length: long on
    three in four women and one in ten men. Raises InputError when the correlations contradict each other.
    """
    rng, correlations = np.random.default_rng([seed, index]), tuple(correlations)
    chances = dict(zip(DRAWN, rng.random(len(DRAWN)).tolist(), strict=True))
    planted, has = {correlation.follower: correlation for correlation in correlations}, frozenset()
    for name in settling_order(correlations):
        if name in planted:
            gets_it = (chances[name] < planted[name].agreement) == (planted[name].leader in has)
        else:
            gets_it = chances[name] < natural_probability(name, has)
            gets_it = gets_it and not any(excludes(name, other) for other in has)
        has |= {name} if gets_it else set()
    free = {entry.name: entry.metadata["from_uniform"] for entry in fields(Face) if entry.metadata}
    numbers = {name: scaled(u) for (name, scaled), u in zip(free.items(), rng.random(len(free)).tolist(), strict=True)}
    u_length, u_hair, u_other = rng.random(3).tolist()
    hair = next((colour for colour in HAIR_COLOURS if colour in has), AUBURN)
    if "Bald" in has:  # what its hair would be: gray by its natural rate, else any other
        gray = natural_probability("Gray_Hair", has)
        rest = ("Black_Hair", "Blond_Hair", "Brown_Hair", AUBURN)
        hair = "Gray_Hair" if u_hair < gray else rest[int((u_hair - gray) / (1 - gray) * len(rest))]
    other = [colour for colour in (*HAIR_COLOURS, AUBURN) if colour != hair]
    other_hair = other[int(u_other * len(other))]
    long, medium = (0.04, 0.10) if "Male" in has else (0.45, 0.75)
    length = HairLength.SHOULDERS if u_length < long else HairLength.JAW if u_length < medium else HairLength.SHORT
    return Face(seed, index, has, hair, other_hair, length, **numbers)


def labels_of(face: Face) -> dict[str, bool]:
    """The face's forty CelebA labels, in CelebA's order; those that are not drawn are False."""
    return {name: name in face.has for name in ATTRIBUTES}


def counterfactual(face: Face, name: str) -> Face:
    """The same face with the drawn attribute `name` turned over, and nothing else.

    Where attributes exclude each other something must give way, as little as can:
    - a hair colour given to a face takes the place of its present colour; taken away, the hair gets `other_hair`;
    - a bald head that gets a hair colour or bangs has hair again;
    - Bald taken away shows the hair that was hidden, in its colour; Bald given hides hair and bangs.
    Natural habits do not bind: a woman may get a mustache. Twice in a row draws the first face again, except for a
    bald head that got a hair colour or bangs, and bangs that were hidden by baldness.
    Raises InputError for an attribute that is not drawn.
    """
    require_drawn(name)
    has, hair, other = set(face.has), face.hair, face.other_hair
    if name in has:
        has.remove(name)
        if name in HAIR_COLOURS:
            hair, other = other, hair
        if name in (*HAIR_COLOURS, "Bald"):
            has |= {hair} & set(HAIR_COLOURS)
    else:
        if name in HAIR_COLOURS:
            hair, other = name, (hair if hair != name else other)
        elif name == "Bangs" and "Bald" in has:
            has |= {hair} & set(HAIR_COLOURS)
        has = {kept for kept in has if not excludes(name, kept)} | {name}
    return replace(face, has=frozenset(has), hair=hair, other_hair=other)
