"""Several processes explain one experiment, however they are started: the tree of one. What is wrong is said once."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from tests.faults.forks import EXIT_OK, Fork, wait_for
from tests.training.small import LAUNCHERS, environment
from tests.worlds import ROOT, SMALL_FLAGS, World, comparable

FLAGS = SMALL_FLAGS | {"batch_size": 2, "query_label": 1, "classifier_scales": "8,30", "save_z_t": True}
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="launchers and forks are for Unix")


@pytest.fixture(scope="module")
def expected(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("alone")
    fork = Fork(world.command(folder / "out", FLAGS), folder / "log")
    assert fork.wait() == EXIT_OK, fork.said()
    return tree(folder / "out")


def tree(out: Path) -> dict[str, bytes]:
    """Every file; --gpu is how the processes were started."""
    return {name: content.replace(b"gpu: cpu,cpu", b"gpu: cpu") for name, content in comparable(out).items()}


def launch(command: list[str], limit: float = 300) -> tuple[int, str, str]:
    """Exit code, output, errors."""
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=limit)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("launcher", [*LAUNCHERS, "--gpu"])
def test_two_processes_leave_the_tree_of_one(launcher, world, expected, tmp_path):
    words = LAUNCHERS.get(launcher, [sys.executable])
    flags = FLAGS | ({"gpu": "cpu,cpu"} if launcher == "--gpu" else {})
    code, out, err = launch([*words, "main.py", *world.command(tmp_path / "out", flags)])
    assert code == 0, err
    assert tree(tmp_path / "out") == expected
    assert out.count("15 images: ") == 1 and out.count("Time: ") == 1 and "died" not in out
    assert "15/15" in err and "% flipped" in err


@pytest.fixture
def launcher():
    """A launcher that forks a process for each of some flags, and ends none when another one has ended."""
    meetings = []

    def start(world: World, folder: Path, each: list[dict], **variables: str) -> list[Fork]:
        meetings.append(TCPStore("localhost", 0, is_master=True, wait_for_workers=False))
        shared = {"WORLD_SIZE": len(each), "LOCAL_WORLD_SIZE": len(each), "TORCHELASTIC_USE_AGENT_STORE": "True"}
        shared |= {"MASTER_ADDR": "localhost", "MASTER_PORT": meetings[-1].port}
        started = []
        for rank, flags in enumerate(each):
            place = {**shared, "RANK": rank, "LOCAL_RANK": rank, **variables}
            place = {name: str(value) for name, value in place.items() if value != ""}
            command = world.command(folder / "out", FLAGS | flags)
            started.append(Fork(command, folder / f"log{rank}", lambda place=place: os.environ.update(place)))
        return started

    return start


@pytest.mark.parametrize(
    ("each", "variables", "said"),
    [
        ([{}, {"seed": 5}], {}, "rank 1 of 2 (RANK and WORLD_SIZE): --seed is 5 here, and was 4 there, in rank 0"),
        ([{}, {"sead": 5}], {}, "unrecognized arguments: --sead 5"),
        ([{"gpu": "cpu,cpu"}] * 3, {}, "--gpu cpu,cpu: "),
        ([{"model_path": "nowhere.pt"}] * 2, {}, "nowhere.pt"),
        ([{}, {"output_path": "ELSEWHERE"}], {}, "cannot be seen from process "),
        ([{}, {}], {"MASTER_ADDR": ""}, "MASTER_ADDR and MASTER_PORT"),
        ([{"noise": "stream"}] * 2, {}, "--noise stream"),
    ],
)
def test_what_is_wrong_is_said_by_one_process_and_ends_all(launcher, world, tmp_path, each, variables, said):
    """Nobody has begun to explain."""
    elsewhere = {"output_path": tmp_path / "elsewhere"}
    started = launcher(
        world, tmp_path, [flags | elsewhere if "output_path" in flags else flags for flags in each], **variables
    )
    codes = [started[0].wait()]
    began = time.monotonic()
    codes += [fork.wait() for fork in started[1:]]
    assert codes == [2] * len(each)
    assert time.monotonic() - began < 10
    lines = [line for fork in started for line in fork.said().splitlines() if "error" in line]
    assert len(lines) == 1 and said in lines[0], lines
    assert not list(tmp_path.rglob("Info/*.txt")) and "Traceback" not in "".join(fork.said() for fork in started)


def test_a_second_launch_is_refused(launcher, world, expected, tmp_path):
    started = launcher(world, tmp_path, [{}, {}])
    wait_for(lambda: any(tmp_path.rglob("Info/*.txt")))
    (tmp_path / "second").mkdir()
    second = launcher(world, tmp_path / "second", [{"output_path": tmp_path / "out"}] * 2)
    assert [fork.wait() for fork in second] == [2, 2]
    assert sum("is working on the same images" in fork.said() for fork in second) == 1
    assert [fork.wait() for fork in started] == [0, 0]
    assert tree(tmp_path / "out") == expected


def test_an_evaluation_by_two_processes_gives_the_same_numbers(metric_world, tmp_path):
    """Those of an evaluation that finds the inputs' features beside the tree are the same too."""
    tree = metric_world.small_tree(tmp_path / "tree")
    flags = {f"--{name}-path": f"models/demo/{name}.safetensors" for name in ("classifier", "oracle")}
    flags |= {"--weights-path": "models/demo/features.safetensors", "--feature-network": "oracle", "--batch-size": "3"}
    command = [str(word) for pair in {**flags, "--output-path": tree, "--exp-name": "expA"}.items() for word in pair]
    numbers = []
    for processes in ("cpu,cpu", "cpu", "cpu"):
        code, out, err = launch([sys.executable, "evaluate.py", *command, "--gpu", processes])
        assert code == 0 and out.count("| flip rate ") == 1, err
        numbers.append((tree / "Results/expA/evaluation.json").read_bytes())
        if processes == "cpu,cpu":
            features = sorted(tree.glob("Original/features-*.npz"))
            assert {path.stem for path in features} == {"features-faces", "features-oracle", "features-oracle-logits"}
            for path in features:
                path.unlink()
    assert numbers[0] == numbers[1] == numbers[2]
