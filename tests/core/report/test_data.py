"""Reading what a report shows: trees of ours, of the published code and of others, and files that are damaged."""

from __future__ import annotations

import tarfile

import pytest
import torch

from dime.core.errors import InputError
from dime.core.report.data import read_experiment, with_changes
from dime.core.results import ResultTree
from tests.helpers import GOLDEN
from tests.report_world import STEPS, make_experiment, record


def test_everything_that_is_there_is_read(tmp_path):
    experiment = read_experiment(make_experiment(tmp_path, "smile/dime", range(6), with_frames=[2]))
    assert list(experiment.images) == list(range(6))
    assert experiment.attribute == "Smiling" and experiment.summary["n"] == 6
    assert experiment.evaluation is None and experiment.plot is None
    image, expected = experiment.images[2], record(2)
    assert all(image.info[name] == getattr(expected, name) for name in ("orig_conf", "scale", "cf_pred", "l_1"))
    assert [path.name for path in image.frames["x_t"]] == [f"{step:04d}.jpg" for step in range(STEPS)]
    assert experiment.images[3].frames == {} and not experiment.images[3].pair.flipped


def test_a_tree_of_the_published_code_has_six_figures(tmp_path):
    with tarfile.open(GOLDEN / "e2e_tree.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    experiment = read_experiment(ResultTree(tmp_path, "demo"))
    assert experiment.attribute is None  # it leaves no config.yaml
    for image in experiment.images.values():
        assert set(image.info) == {"label", "pred", "target", "cf_pred", "bkl", "l_1"}
        assert image.difference is not None


def test_files_that_are_not_there_are_not_needed(tmp_path):
    tree = make_experiment(tmp_path, "exp", range(3))
    for path in [*tree.results.rglob("*.txt"), *tree.results.glob("*.yaml"), *tree.results.rglob("SM/*.jpg")]:
        path.unlink()
    experiment = read_experiment(tree)
    assert experiment.summary is None and experiment.attribute is None
    assert all(image.info == {} and image.difference is None for image in experiment.images.values())
    empty = ResultTree(tmp_path, "empty")
    empty.create()
    with pytest.raises(InputError, match="holds no counterfactual yet"):
        read_experiment(empty)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *((name, content) for name in ("summary.yaml", "evaluation.json") for content in (b"{ n: [", b"\xff\xfe\x00")),
        *(("config.yaml", b"[1, 2]"), ("evaluation.json", b"[1, 2]"), ("summary.yaml", b"just words")),
        ("CC/CCF/Info/0000001.txt", b"label: 1\nBKL: small"),
    ],
)
def test_an_unreadable_file_is_named(tmp_path, name, content):
    tree = make_experiment(tmp_path, "exp", range(2))
    tree.report(name).write_bytes(content)
    with pytest.raises(InputError, match=name + ".*(not readable|holds no table|BKL is 'small', expected a number)"):
        read_experiment(tree)


def test_attribute_changes_are_the_decisions_that_differ(tmp_path):
    experiment = read_experiment(make_experiment(tmp_path, "exp", range(4)))

    def logits(paths):
        rows = -torch.ones(len(paths), 40)
        for row, path in zip(rows, paths, strict=True):
            is_counterfactual = path.parent.name == "CF"
            row[31] = 1 if is_counterfactual else -1  # gained by all
            row[5] = -1 if is_counterfactual and path.stem == "0000002" else 1  # lost by the last
        return rows

    ids = [0, 1, 2, 9]  # of which another experiment has the last
    assert with_changes(experiment, ids, logits).changes == {0: [(31, 1)], 1: [(31, 1)], 2: [(5, -1), (31, 1)]}
    assert with_changes(experiment, [9], logits).changes == {}
    with pytest.raises(InputError, match="39 outputs"):
        with_changes(experiment, ids, lambda paths: torch.zeros(len(paths), 39))
