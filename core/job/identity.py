"""What makes two runs the same: every flag, file of weights and annotation that can change a result.

And with it, how the summaries of a run's chunks become that of the whole, once it is proven that they are all of it.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from dime.core.config import Accepted, Config
from dime.core.errors import InputError
from dime.core.files import located, read_yaml
from dime.core.job.setup import Setup
from dime.core.networks.features import VGG19_URL
from dime.core.networks.files import pretrained_weights
from dime.core.results import CELLS, ResultTree, image_files
from dime.core.summary import Summary, write_summary
from guided_diffusion.files import is_remote, open_file

Identity = dict[str, Any]
"""Name of a flag (or of what it stands for) -> its value, plain numbers and strings."""

RUN = "run"
"""The table in a chunk's summary that says which chunk of which run it is; published summaries have none."""
WITHOUT_EFFECT = {field.name for field in dataclasses.fields(Accepted)}
HARMLESS = {
    *("output_path", "exp_name", "gpu", "chunk", "merge_and_eval"),
    *("overwrite", "allow_partial", "on_bad_image", "oracle_figures"),
    # paths of data and weights: their content counts; num_batches: the images chosen count
    *("data_dir", "model_path", "classifier_path", "perceptual_path", "oracle_path", "face_path", "num_batches"),
    # the labels, targets and names that they lead to count
    *("class_names", "classes", "trust_classifier"),
    # a preset stands in the flags that it sets, use_fp16 in precision; the others have no effect here
    *("preset", "use_fp16", "use_checkpoint", *WITHOUT_EFFECT),
}
"""Flags that may differ between a run and its continuation; any other is part of the identity."""

DEFAULTS = {field.name: field.default for field in dataclasses.fields(Config)}
"""What runs of earlier versions did where they did not know a flag."""
SAID = {
    "images": "the chosen images and labels (--data_dir, --num_batches, --target_label)",
    "device": "the kind of device (its random numbers are its own)",
}


def identity_of(setup: Setup, flags: Mapping[str, Any]) -> Identity:
    """The identity shared by all chunks of a run. flags: all of them, those of the diffusion model included."""
    config, explainer, question = setup.config, setup.explainer, setup.question
    identity = {
        **{name: value for name, value in flags.items() if name not in HARMLESS},
        "model_path": digest_of(config.model_path, explainer.diffusion.network),
        "classifier_path": digest_of(config.classifier_path, explainer.classifier),
        "device": setup.device.type,
    }
    if config.l_perc:
        identity["perceptual_path"] = digest_of(config.perceptual_path or pretrained_weights(VGG19_URL))
    if question.target and question.fixed_target is None:
        identity["target"] = digest_of(config.target)
    images = hashlib.sha256(setup.source.rows(setup.selection).encode()).hexdigest()
    identity["images"] = f"{len(setup.selection)}, sha256 {images}"
    return json.loads(json.dumps(identity))  # as a file gives it back, and nothing shared with the flags


def digest_of(path: str | Path, network: nn.Module | None = None) -> str:
    """The SHA-256 of a local or remote file's content; where there is none, of a network's."""
    digest, path = hashlib.sha256(), located(path)
    if network is not None and not is_remote(path) and not Path(path).is_file():
        for name, tensor in network.state_dict().items():
            digest.update(name.encode() + tensor.detach().cpu().float().numpy().tobytes())
        return f"sha256 {digest.hexdigest()}"
    with open_file(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return f"sha256 {digest.hexdigest()}"


def short_hash(identity: Identity) -> int:
    """48 bits of an identity: a plain number, as everything in a summary."""
    text = json.dumps(identity, sort_keys=True)
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)


def require_same_run(tree: ResultTree, identity: Identity) -> None:
    """Raise InputError, naming what differs, if the experiment's folder holds results of another run."""
    configs = tree.reports("config.yaml")
    if not configs and any(image_files(tree.results / cell / "CF") for cell in CELLS):
        raise InputError(
            f"{tree.results}: holds results of an unknown run (no config.yaml); choose another --exp_name, or start "
            "afresh with --overwrite True"
        )
    for path in configs:
        difference = difference_between(identity, read_identity(path))
        if difference:
            raise InputError(
                f"{path}: made by another run: {difference}; repeat its command to continue it, choose another "
                "--exp_name, or start afresh with --overwrite True"
            )


def read_identity(config: Path) -> Identity:
    """The identity that stands in a config.yaml, empty if it has none. Raises InputError for a damaged file."""
    try:
        content = read_yaml(config)
    except ValueError as error:
        raise InputError(f"{config}: not a readable configuration ({error})") from None
    identity = content.get("identity") if isinstance(content, dict) else None
    return identity if isinstance(identity, dict) else {}


def difference_between(ours: Identity, theirs: Identity) -> str:
    """The first thing in which two identities differ, with both values, in words; '' when they are the same."""
    if not theirs:
        return "an earlier version, which did not say with what"
    for name in sorted((ours.keys() | theirs.keys()) - WITHOUT_EFFECT):
        mine, other = (side.get(name, DEFAULTS.get(name, "absent")) for side in (ours, theirs))
        if mine != other:
            mine, other = (text if len(text) <= 80 else f"{text[:76]}…" for text in (str(mine), str(other)))
            return f"{SAID.get(name, f'--{name}')} is {mine} here, and was {other} there"
    return ""


def merge_chunks(tree: ResultTree, num_chunks: int, allow_partial: bool = False) -> Summary:
    """Read every chunk's summary and write the whole one's.

    Raises InputError naming the chunks that are missing, damaged, unfinished, twice there or of another run. With
    allow_partial the first three may be missing from the whole, which then says so.
    """
    paths = [tree.report("summary.yaml", num_chunks, chunk) for chunk in range(num_chunks)]
    foreign = [path for path in tree.reports("summary.yaml") if path not in paths and path.name != "summary.yaml"]
    if foreign:
        raise InputError(
            f"{foreign[0]}: belongs to another --num_chunks than {num_chunks}; merge with that one, or remove what "
            "does not belong to the experiment"
        )
    summaries: dict[int, Summary] = {}
    missing: dict[int, str] = {}
    for chunk, path in enumerate(paths):
        try:
            summaries[chunk] = _readable(read_yaml(path))
        except FileNotFoundError:
            missing[chunk] = f"{path.name} is missing"
        except ValueError as error:
            missing[chunk] = f"{path.name} {error}"
    runs = {chunk: summary.pop(RUN) for chunk, summary in summaries.items() if summary.get(RUN)}
    for chunk, run in runs.items():
        first = next(iter(runs))
        if (run["chunk"], run["num_chunks"]) != (chunk, num_chunks):
            raise InputError(
                f"{paths[chunk]}: is that of chunk {run['chunk']} of {run['num_chunks']}; run chunk {chunk} again"
            )
        if run["identity"] != runs[first]["identity"]:
            configs = [tree.report("config.yaml", num_chunks, number) for number in (chunk, first)]
            identities = [read_identity(config) if config.exists() else {} for config in configs]
            difference = difference_between(*identities) if all(identities) else "see their config.yaml"
            raise InputError(f"{paths[chunk]}: is of another run than chunk {first}: {difference}")
    if missing and not (allow_partial and summaries):
        raise InputError(
            f"{tree.results}: {len(missing)} of {num_chunks} chunks are not there: {'; '.join(missing.values())}; run "
            "them (again) first, or merge the rest with --allow_partial True"
        )
    merged = merge(list(summaries.values()))
    if missing:
        merged["missing"] = {"chunks": sorted(missing)}
        for run in list(runs.values())[:1]:
            merged["missing"]["images"] = run["total"] - merged["n"] - merged.get("failed", 0)
    write_summary(tree.report("summary.yaml"), merged)
    return merged


def merge(summaries: Sequence[Summary]) -> Summary:
    """The summary of the whole from those of its chunks: every figure weighted by its own table's n.

    A figure that a chunk lacks counts as 0 there, as for the published FVA and MNAC.
    """
    counts = [summary.get("n", 0) for summary in summaries]
    merged: Summary = {}
    for key in sorted({key for summary in summaries for key in summary}):
        values = [summary.get(key, 0) for summary in summaries]
        if any(isinstance(value, dict) for value in values):
            merged[key] = merge([value or {} for value in values])
        elif key in ("n", "failed", "unlabelled"):
            merged[key] = sum(values)
        elif key == "batch size":
            merged[key] = min(value for value in values if value)
        else:
            merged[key] = float(np.average(values, weights=counts)) if sum(counts) else 0
    return merged


def _readable(summary: Any) -> Summary:
    """A finished chunk's summary. Raises ValueError, as the end of a sentence about the file, for anything else."""
    if not isinstance(summary, dict) or not isinstance(summary.get("n"), int):
        raise ValueError("is not a summary of a run (no count n)")
    tables = [summary]
    while tables:
        for value in tables.pop().values():
            if isinstance(value, dict):
                tables.append(value)
            elif not isinstance(value, (int, float)):
                raise ValueError("has a figure that is no number")
    images, found = (summary.get(RUN) or {}).get("images"), summary["n"] + summary.get("failed", 0)
    if images is not None and images != found:
        raise ValueError(f"is about {found} images instead of {images}")
    return summary
