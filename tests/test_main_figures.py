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
from tests.worlds import as_arguments, refused, run_main, succeeded

FLIPPING = {"query_label": 1, "classifier_scales": "30"}


def figures(out: Path) -> tuple[float, float]:
    summary = yaml.safe_load((out / "Results/exp/summary.yaml").read_text())
    return summary["FVA"], summary["MNAC"]


def test_figures_of_a_run_and_of_merged_chunks(world, metric_world, tmp_path):
    asked_for = {"oracle_figures": True, "oracle_path": metric_world.oracle, "face_path": metric_world.faces}
    for chunk in range(2):
        world.explain(tmp_path, **FLIPPING, num_chunks=2, chunk=chunk)
    merge = {"output_path": tmp_path, "exp_name": "exp", "gpu": "cpu", "merge_and_eval": True, "num_chunks": 2}
    succeeded(run_main(*as_arguments(merge)))
    assert figures(tmp_path) == (0, 0)
    succeeded(run_main(*as_arguments(merge | asked_for)))

    machine = Machine(torch.device("cpu"), batch_size=4)
    pairs = select_pairs(ResultTree(tmp_path, "exp"))
    fva, _ = face_verification(pairs, face_features(metric_world.faces, machine))
    [mnac] = changed_attributes(pairs, oracle_logits(metric_world.oracle, machine))
    assert mnac.value > 0
    assert figures(tmp_path) == (fva.value, pytest.approx(mnac.value))

    world.explain(tmp_path / "whole", **FLIPPING, **asked_for)
    assert figures(tmp_path / "whole") == (fva.value, pytest.approx(mnac.value))

    missing = asked_for | {"face_path": tmp_path / "no-faces.pkl"}  # before the run
    assert "no-faces.pkl" in refused(world, tmp_path / "out", **missing)
