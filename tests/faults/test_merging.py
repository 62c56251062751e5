"""Merging proves that it has all chunks of one run, or says which it has not."""

import shutil
from pathlib import Path

import pytest
import yaml

from tests.worlds import SMALL_FLAGS, World, refused, run_main, succeeded, tree_of

FLAGS = {"num_chunks": 3, "save_images": False, "num_batches": 2}


@pytest.fixture(scope="module")
def chunks(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("chunks") / "out"
    for chunk in range(3):
        world.explain(out, **FLAGS, chunk=chunk)
    return out


@pytest.fixture
def out(chunks: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(chunks, tmp_path / "out"))


def file(out: Path, chunk: int, name: str = "summary.yaml", num_chunks: int = 3) -> Path:
    return out / f"Results/exp/chunk-{chunk}_num-chunks-{num_chunks}_{name}"


def merge(world: World, out: Path, **flags: object) -> str:
    return refused(world, out, merge_and_eval=True, num_chunks=3, **flags)


@pytest.mark.parametrize("damage", ["missing", "cut", "lacks images"])
def test_a_chunk_that_is_not_whole(world, out, damage):
    path = file(out, 1)
    text = path.read_text()
    path.unlink()
    if damage != "missing":
        path.write_text(text[:40] if damage == "cut" else text.replace("images: 3", "images: 300"))
    said = {"missing": " is missing", "cut": "", "lacks images": " is about 3 images instead of 300"}[damage]
    assert path.name + said in merge(world, out)
    flags = SMALL_FLAGS | {"merge_and_eval": True, "num_chunks": 3, "allow_partial": True}
    before = tree_of(out)
    succeeded(run_main(*world.command(out, flags)))
    after = tree_of(out)  # the chunks stay as they are
    assert before == {name: after[name] for name in before} and after.keys() - before.keys() == {
        "Results/exp/summary.yaml"
    }
    summary = yaml.safe_load((out / "Results/exp/summary.yaml").read_text())
    assert summary["missing"] == {"chunks": [1], "images": 3} and summary["n"] == 5


def test_chunk_under_anothers_name(world, out):
    file(out, 2).write_bytes(file(out, 1).read_bytes())
    line = merge(world, out)
    assert file(out, 2).name in line and "chunk 1 of 3" in line
    assert "chunk 1 of 3" in merge(world, out, allow_partial=True)


def test_chunk_of_another_split_and_none_at_all(world, out):
    file(out, 0, num_chunks=4).write_bytes(file(out, 0).read_bytes())
    assert "chunk-0_num-chunks-4_summary.yaml" in merge(world, out)
    for path in out.rglob("*_summary.yaml"):
        path.unlink()
    assert "3 of 3" in merge(world, out, allow_partial=True)


def test_chunk_of_another_run(world, out, tmp_path):
    world.explain(tmp_path / "other", **FLAGS, chunk=2, seed=5)
    for name in ("summary.yaml", "config.yaml", "stats.pth"):
        shutil.copy(file(tmp_path / "other", 2, name), file(out, 2, name))
    for flags in ({}, {"allow_partial": True}):
        line = merge(world, out, **flags)
        assert file(out, 2).name in line and "--seed" in line and "5" in line and "4" in line
