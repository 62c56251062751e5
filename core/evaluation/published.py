"""The papers' figures for CelebA 128, Smile, and what keeps a number of ours from being compared with them."""

from __future__ import annotations

from collections.abc import Mapping

from dime.core.evaluation.measures import Measurement, frechet_names
from dime.core.results import Pair, ResultTree
from dime.core.run_config import recorded

PUBLISHED: dict[str, dict[str, float]] = {
    "DiME": {
        "flip rate": 0.972,
        "FVA": 0.983,
        "FS": 0.73,
        "MNAC": 3.72,
        "CD": 2.30,
        "COUT": 0.53,
        "FID": 3.17,
        "sFID": 4.89,
        "sigma_L": 0.2139,
    },
    "FastDiME": {"FID": 4.18},
    "FastDiME-2": {"FID": 3.33},
    "FastDiME-2+": {"FID": 3.24, "flip rate": 0.989},
    "ACE-l1": {"FID": 1.27},
    "MaskDiME": {"FID": 0.71, "flip rate": 1.0, "COUT": 0.87, "sigma_L": 0.0395},
}
"""Paper -> metric -> figure; full val set, about 20,000 images, as transcribed by the later papers."""

FID_IMAGES = 2048
"""Fewer images than Inception has features leave the covariance without full rank, and the FID far too large."""


def too_few_images(distance: Measurement) -> str | None:
    """A line of warning for a Fréchet distance of few images."""
    if distance.n >= FID_IMAGES:
        return None
    return (
        f"Frechet distances of fewer than {FID_IMAGES} images grow as images get fewer: they do not compare with the "
        "papers', which use about 20,000"
    )


def caveats(tree: ResultTree, pairs: list[Pair], measurements: Mapping[str, Measurement]) -> list[str]:
    """Lines that say which figures of an experiment do not compare with the papers', and why."""
    lines = []
    distances = [m for m in measurements.values() if m.name in ("FID", "sFID") or "Frechet" in m.name]
    if distances and (few := too_few_images(distances[0])):
        lines.append(few)
    if any(m.name == frechet_names("oracle")[0] for m in distances):
        lines.append("distances in the oracle's feature space compare with each other only, never with a FID")
    if any(pair.counterfactual.suffix == ".jpg" for pair in pairs):
        lines.append(
            "the images are JPEG files, as DiME's own (quality 75): figures of papers that saved without loss differ"
        )
    if "CelebAMV" in recorded(tree, "dataset"):
        lines.append("the mini-validation set of 1000 images was explained: the papers' figures are of the whole one")
    return lines
