"""The result tree: published names, and the reader that the metrics use."""

from __future__ import annotations

from pathlib import Path

import pytest

from dime.core.errors import InputError
from dime.core.results import ResultTree


@pytest.fixture
def tree(tmp_path: Path) -> ResultTree:
    return ResultTree(tmp_path, "exp/name")


def add(tree: ResultTree, id: int, correct: bool, flipped: bool) -> None:
    tree.create()
    tree.original(id, correct).write_bytes(b"x")
    tree.image("CF", id, correct, flipped).write_bytes(b"cf")


def test_published_paths(tmp_path, tree):
    names = {
        "Original/Correct/0000012.jpg": tree.original(12, True),
        "Original/Incorrect/0000012.jpg": tree.original(12, False),
        "Results/exp/name/CC/CCF/CF/0000012.jpg": tree.image("CF", 12, True, True),
        "Results/exp/name/CC/ICF/Noise/0000012.jpg": tree.image("Noise", 12, True, False),
        "Results/exp/name/IC/CCF/SM/0000012.jpg": tree.image("SM", 12, False, True),
        "Results/exp/name/IC/ICF/Info/0000012.txt": tree.info(12, False, False),
        "x_t/exp/name/000012/0003.jpg": tree.frame("x_t", 12, 3),
        "z_t/exp/name/000012/0059.jpg": tree.frame("z_t", 12, 59),
        "Results/exp/name/summary.yaml": tree.report("summary.yaml"),
        "Results/exp/name/chunk-2_num-chunks-7_stats.pth": tree.report("stats.pth", 7, 2),
    }
    for name, path in names.items():
        assert path == tmp_path / name
    png = ResultTree(tmp_path, "exp", "png")
    assert {path.suffix for path in (png.original(1, True), png.image("CF", 1, True, True))} == {".png"}
    assert png.info(1, True, True).suffix == ".txt"
    tree.create()
    folders = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if not any(path.iterdir())}
    cells = {f"Results/exp/name/{c}/{f}" for c in ("CC", "IC") for f in ("CCF", "ICF")}
    expected = {f"{cell}/{kind}" for cell in cells for kind in ("CF", "Noise", "SM", "Info")}
    assert folders == expected | {"Original/Correct", "Original/Incorrect"} and tree.pairs() == []


def test_stored_originals_in_any_format(tmp_path, tree):
    assert tree.stored_originals(1) == []
    add(tree, 1, True, True)
    ResultTree(tmp_path, "other", "png").original(1, False).write_bytes(b"x")
    assert tree.stored_originals(1) == [
        tmp_path / "Original/Correct/0000001.jpg",
        tmp_path / "Original/Incorrect/0000001.png",
    ]
    assert tree.stored_originals(11) == []


def test_pairs_come_by_id_from_all_four_cells(tmp_path, tree):
    quarters = {9: (True, True), 2: (False, True), 30: (True, False), 4: (False, False)}
    for id, (correct, flipped) in quarters.items():
        add(tree, id, correct, flipped)
    (tree.image("CF", 2, True, True).parent / "notes.txt").write_text("ignored")
    (tree.image("CF", 2, True, True).parent / "cover.jpg").write_text("ignored")
    pairs = tree.pairs()
    assert [pair.id for pair in pairs] == [2, 4, 9, 30]
    for pair in pairs:
        assert (pair.correct, pair.flipped) == quarters[pair.id]
        assert pair.original == tree.original(pair.id, pair.correct)
        assert pair.counterfactual == tree.image("CF", pair.id, pair.correct, pair.flipped)
        assert pair.info == tree.info(pair.id, pair.correct, pair.flipped)


def test_trees_that_contradict_themselves(tmp_path, tree):
    add(tree, 5, True, True)
    with pytest.raises(InputError, match="exp/name"):  # names the experiments that are there
        ResultTree(tmp_path, "exp/nmae").pairs()
    add(tree, 5, True, False)
    with pytest.raises(InputError, match="0000005"):
        tree.pairs()
    tree.image("CF", 5, True, False).unlink()
    tree.original(5, True).unlink()
    with pytest.raises(InputError, match="0000005"):
        tree.pairs()
