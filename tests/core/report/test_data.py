"""Reading what a report shows: trees of ours, of the published code and of others, and files that are damaged."""

from __future__ import annotations

import tarfile

import pytest
import torch

from dime.core.errors import InputError
from dime.core.report.data import attribute_changes, read_experiment
from dime.core.results import ResultTree
from tests.helpers import GOLDEN
from tests.report_world import STEPS, make_experiment, record


def test_everything_that_is_there_is_read(tmp_path):
    tree = make_experiment(tmp_path, "smile/dime", range(6), with_frames=[2])
    experiment = read_experiment(tree)
    assert list(experiment.images) == list(range(6))
    assert experiment.attribute == "Smiling"
    assert experiment.summary["n"] == 6
    assert experiment.evaluation is None and experiment.plot is None
    image, expected = experiment.images[2], record(2)
    assert image.info["orig_conf"] == expected.orig_conf and image.info["scale"] == expected.scale
    assert image.info["cf_pred"] == expected.cf_pred and image.info["l_1"] == expected.l_1
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


def test_no_experiment_and_an_empty_one_are_refused(tmp_path):
    make_experiment(tmp_path, "there", range(2))
    with pytest.raises(InputError, match="no experiment lies there; experiments there: there"):
        read_experiment(ResultTree(tmp_path, "absent"))
    empty = ResultTree(tmp_path, "empty")
    empty.create()
    with pytest.raises(InputError, match="holds no counterfactual yet"):
        read_experiment(empty)


@pytest.mark.parametrize("name", ["summary.yaml", "config.yaml", "evaluation.json"])
@pytest.mark.parametrize("content", [b"{ n: [", b"\xff\xfe\x00", b"[1, 2]", b"just words"])
def test_an_unreadable_table_is_named(tmp_path, name, content):
    tree = make_experiment(tmp_path, "exp", range(2))
    tree.report(name).write_bytes(content)
    with pytest.raises(InputError, match=name):
        read_experiment(tree)


def test_an_info_file_of_other_words_is_named(tmp_path):
    tree = make_experiment(tmp_path, "exp", range(2))
    info = next(tree.results.rglob("0000001.txt"))
    info.write_text("label: 1\nBKL: small")
    with pytest.raises(InputError, match=r"0000001\.txt: BKL is 'small', expected a number"):
        read_experiment(tree)


def test_attribute_changes_are_the_decisions_that_differ(tmp_path):
    images = list(read_experiment(make_experiment(tmp_path, "exp", range(3))).images.values())

    def logits(paths):
        rows = -torch.ones(len(paths), 40)
        for row, path in zip(rows, paths, strict=True):
            is_counterfactual = path.parent.name == "CF"
            row[31] = 1 if is_counterfactual else -1  # gained by all
            row[5] = -1 if is_counterfactual and path.stem == "0000002" else 1  # lost by the last
        return rows

    assert attribute_changes(images, logits) == {0: [(31, 1)], 1: [(31, 1)], 2: [(5, -1), (31, 1)]}
    assert attribute_changes([], logits) == {}
    with pytest.raises(InputError, match="39 outputs"):
        attribute_changes(images, lambda paths: torch.zeros(len(paths), 39))
