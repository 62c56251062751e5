"""FVA and MNAC in the main job's summary: only when asked for, of the whole tree, and equal to the metric scripts'."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from dime.core.metrics.faces import face_features, face_verification
from dime.core.metrics.features import Machine
from dime.core.metrics.metric import select_pairs
from dime.core.metrics.mnac import changed_attributes, oracle_logits
from dime.core.results import ResultTree
from tests.worlds import SMALL_FLAGS, as_arguments, refused, run_main

FLIPPING = {"query_label": 1, "classifier_scales": "30"}


def figures(out: Path) -> tuple[float, float]:
    summary = yaml.safe_load((out / "Results/exp/summary.yaml").read_text())
    return summary["FVA"], summary["MNAC"]


@pytest.fixture(scope="module")
def asked_for(metric_world) -> dict[str, object]:
    return {"oracle_figures": True, "oracle_path": metric_world.oracle, "face_path": metric_world.faces}


def test_figures_of_a_run_and_of_merged_chunks(world, asked_for, metric_world, tmp_path):
    for chunk in range(2):
        world.explain(tmp_path, **FLIPPING, num_chunks=2, chunk=chunk)
    merge = {"output_path": tmp_path, "exp_name": "exp", "gpu": "cpu", "merge_and_eval": True, "num_chunks": 2}
    assert run_main(*as_arguments(merge)).code == 0
    assert figures(tmp_path) == (0, 0)
    assert run_main(*as_arguments(merge | asked_for)).code == 0

    machine = Machine(torch.device("cpu"), batch_size=4)
    pairs = select_pairs(ResultTree(tmp_path, "exp"))
    fva, _ = face_verification(pairs, face_features(metric_world.faces, machine))
    [mnac] = changed_attributes(pairs, oracle_logits(metric_world.oracle, machine))
    assert mnac.value > 0
    assert figures(tmp_path) == (fva.value, pytest.approx(mnac.value))

    world.explain(tmp_path / "whole", **FLIPPING, **asked_for)
    assert figures(tmp_path / "whole") == (fva.value, pytest.approx(mnac.value))


def test_missing_weights_are_refused_before_the_run(world, asked_for, tmp_path):
    missing = SMALL_FLAGS | asked_for | {"face_path": tmp_path / "no-faces.pkl"}
    assert "no-faces.pkl" in refused(world, tmp_path / "out", **missing)
