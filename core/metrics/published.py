"""The papers' figures for CelebA 128, Smile, and what keeps a number of ours from being compared with them."""

from __future__ import annotations

from dime.core.results import ResultTree
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


def caveats(tree: ResultTree) -> list[str]:
    """Lines that say why figures of an experiment, whatever the metric, do not compare with the papers'."""
    lines = []
    if any(pair.counterfactual.suffix == ".jpg" for pair in tree.pairs()):
        lines.append(
            "the images are JPEG files, as DiME's own (quality 75): figures of papers that saved without loss differ"
        )
    if "CelebAMV" in recorded(tree, "dataset"):
        lines.append("the mini-validation set of 1000 images was explained: the papers' figures are of the whole one")
    return lines
