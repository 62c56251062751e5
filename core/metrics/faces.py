"""FVA and FS: is the person the same? Cosines between VGGFace2 features of input and counterfactual."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from dime.core.errors import UndefinedError
from dime.core.metrics.features import ImageFeatures, Machine
from dime.core.metrics.metric import Context, Features, Measurement, Metric, counterfactuals, mean, originals
from dime.core.networks.features import load_small_cnn, load_vggface2, vggface2_file
from dime.core.networks.files import SAFETENSORS
from dime.core.results import Pair, ResultTree
from dime.models.resnet import vggface2_input

SAME_FACE = 0.5
"""Cosine of VGGFace2 features above which two images count as one person."""
SMALL_FS = "FS (small network)"
"""FS with the features of another network than VGGFace2's, which does not compare with FS."""


def face_similarity(features: torch.Tensor, cf_features: torch.Tensor) -> np.ndarray:
    """Cosine (N,) between features (N, D) of inputs and counterfactuals; NaN where a vector has no direction."""
    a, b = features.double(), cf_features.double()
    undefined = (a == 0).all(dim=1) | (b == 0).all(dim=1)
    return F.cosine_similarity(a, b).masked_fill(undefined, torch.nan).numpy()


def same_face(similarity: np.ndarray) -> np.ndarray:
    """Which counterfactuals (N,) show the input's person, 0 or 1; the mean is the FVA (Rodríguez et al. 2021, DiVE)."""
    return np.where(np.isnan(similarity), np.nan, similarity > SAME_FACE)


def face_verification(
    pairs: Sequence[Pair], faces: Features, names: Sequence[str] = ("FVA", "FS")
) -> list[Measurement]:
    """FVA and FS (the mean cosine) of pairs. faces: VGGFace2 features, or others, whose mean cosine is SMALL_FS."""
    features, cf_features = faces(originals(pairs)), faces(counterfactuals(pairs))
    both = torch.cat([features, cf_features])
    if len(pairs) > 1 and (both == both[0]).all():
        raise UndefinedError("the network gives all images the same features")
    similarity = face_similarity(features, cf_features)
    return [mean(name, same_face(similarity) if name == "FVA" else similarity) for name in names]


def face_features(weights_path: str | Path, machine: Machine, file: Path | None = None) -> ImageFeatures:
    """VGGFace2 features (N, 2048) of image files; those (N, D) of a small CNN where the file is a .safetensors."""
    path = Path(weights_path)
    if path.suffix == SAFETENSORS:
        return ImageFeatures(load_small_cnn(path, machine.device).feat_extract, machine, file=file, weights=path)
    network = load_vggface2(path, machine.device)
    return ImageFeatures(network, machine, vggface2_input, file, vggface2_file(path))


def needs(context: Context, tree: ResultTree) -> tuple[Features, tuple[str, ...]]:
    """Features of faces, and the names of what is measured with them."""
    file = tree.original_features("faces")
    return context.once(face_features, context.weights_path, context.machine, file), names(context)


def names(context: Context) -> tuple[str, ...]:
    """What is measured with the network of --weights-path."""
    return (SMALL_FS,) if context.weights_path.suffix == SAFETENSORS else ("FVA", "FS")


FACES = Metric(
    rows=("FVA", "FS", SMALL_FS),
    measure=face_verification,
    needs=needs,
    names=names,
    flags=("--weights-path",),
    printed={"FVA": "FVA", "FS": "mean dist"},
)
