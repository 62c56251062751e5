"""Which attributes a drawn face has: the natural correlations, planted shortcuts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

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
    def parse(cls, text: str) -> Correlation:
        """Read `Smiling:Eyeglasses=0.9`. Raises InputError for another form, name or probability."""
        names, equals, number = text.partition("=")
        leader, colon, follower = names.partition(":")
        try:
            agreement = float(number)
        except ValueError:
            agreement = -1.0
        if not (colon and equals and 0 <= agreement <= 1):
            expected = "LEADER:FOLLOWER=P with P in 0..1, as in Smiling:Eyeglasses=0.9"
            raise InputError(f"correlation {text!r}: expected {expected}")
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
