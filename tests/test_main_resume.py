"""The same command again continues: the same bytes as an undisturbed run, or a refusal that names what differs."""

import contextlib
import itertools
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dime.core.cli import EXIT_CONTINUE
from dime.core.job.queue import Queue
from tests.worlds import SMALL_FLAGS, World, comparable, refused, run_main, succeeded, tree_of, watched

TWO_SCALES = {"query_label": 1, "classifier_scales": "8,30", "save_z_t": True}
"""Flags under which some images need the second scale."""


NO_PROCESS = 4194999
"""Beyond the largest process id of Linux, 2 ** 22."""


class PulledPlugError(BaseException):
    """What no code catches, like SIGKILL, but inside this process."""


@contextlib.contextmanager
def dying_after(writes: int, monkeypatch: pytest.MonkeyPatch, batches: int = 99) -> Iterator[None]:
    """The process "dies" before the file number `writes` takes its name; its temporary file stays behind.

    Or after so many batches.
    """
    replace, unlink, count = Path.replace, Path.unlink, itertools.count()

    def dying_replace(self: Path, target: Path) -> Path:
        if self.suffix == ".tmp" and next(count) == writes:
            patch.setattr(Path, "unlink", lambda self, missing_ok=False: None)  # the dead tidy nothing up
            raise PulledPlugError
        return replace(self, target)

    done, finished = Queue.done, itertools.count()

    def dying_done(self: Queue, *given: Any) -> None:
        if next(finished) == batches:
            raise PulledPlugError
        done(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dying_replace)
        patch.setattr(Queue, "done", dying_done)
        with contextlib.suppress(PulledPlugError):
            yield
    assert Path.replace is replace and Path.unlink is unlink


def interrupted_and_resumed(
    world: World, out: Path, writes: int, monkeypatch: pytest.MonkeyPatch, batches: int = 99, **flags: Any
) -> int:
    """Number of U-Net evaluations of the second run."""
    command = world.command(out, SMALL_FLAGS | flags)
    with dying_after(writes, monkeypatch, batches):
        run_main(*command)
    for path in out.rglob(".*.tmp"):  # as if written by a process that is no more
        path.rename(path.with_name(path.name.replace(f".{os.getpid()}-", f".{NO_PROCESS}-")))
    evaluations = []
    with monkeypatch.context() as patch:
        watched(patch, "load_diffusion", lambda unet: unet.register_forward_hook(lambda *_: evaluations.append(1)))
        succeeded(run_main(*command))
    return len(evaluations)


def whole_run(world: World, out: Path, **flags: Any) -> dict[str, bytes]:
    """The tree of a run left alone; configurations name the output folder, so they are compared without it."""
    world.explain(out, **flags)
    return comparable(out)


@pytest.fixture(scope="module")
def expected(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return whole_run(world, tmp_path_factory.mktemp("whole") / "out", **TWO_SCALES)


@pytest.mark.parametrize("writes", [0, 6, 33, 70, 121])
def test_resumed_run_is_byte_identical(world, expected, tmp_path, monkeypatch, writes):
    """Cut off while writing the configuration, frames, statistics, the third of four batches and the statistics."""
    rest = interrupted_and_resumed(world, tmp_path / "out", writes, monkeypatch, **TWO_SCALES)
    assert comparable(tmp_path / "out") == expected
    if writes == 70:  # finished batches are not computed again
        assert 0 < rest <= 2 * 2 * 4  # two batches, two scales, four evaluations at tau = 3
        assert interrupted_and_resumed(world, tmp_path / "out", 0, monkeypatch, **TWO_SCALES) == 0


def test_a_stream_of_noise_is_drawn_from_its_beginning(world, tmp_path, monkeypatch):
    """After an interruption, and where an early image is lost."""
    flags = {**TWO_SCALES, "noise": "stream"}
    expected = whole_run(world, tmp_path / "whole", **flags)
    interrupted_and_resumed(world, tmp_path / "out", 105, monkeypatch, **flags)
    assert comparable(tmp_path / "out") == expected
    for path in (tmp_path / "out").rglob("0000005.*"):
        path.unlink()
    world.explain(tmp_path / "out", **flags)
    assert comparable(tmp_path / "out") == expected


def test_a_run_without_images_resumes_from_what_its_queue_has(world, tmp_path, monkeypatch):
    flags = {"save_images": False}
    expected = whole_run(world, tmp_path / "whole", **flags)
    rest = interrupted_and_resumed(world, tmp_path / "b", 99, monkeypatch, batches=2, **flags)
    assert rest == 2 * 4  # two of four batches stood in the queue; four evaluations each
    assert comparable(tmp_path / "b") == expected


@pytest.mark.parametrize("pattern", ["CF/0000007.*", "Noise/0000003.*", "SM/0000014.*", "Info/0000000.*",
                                     "Correct/0000007.*", "000007/0002.*", "truncated Info/0000009.*"])  # fmt: skip
def test_an_image_counts_as_done_only_with_all_its_files(world, expected, tmp_path, pattern):
    out = tmp_path / "out"
    for name, content in expected.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content.replace(b"OUT", str(out).encode()) if name.endswith("yaml") else content)
    path = next(out.rglob(pattern.removeprefix("truncated ")))
    content = path.read_bytes()
    path.unlink()
    if pattern.startswith("truncated"):
        path.write_bytes(content[:50])
    world.explain(out, **TWO_SCALES)
    assert comparable(out) == expected


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("seed", 5, ("--seed", "is 5", "was 4")),
        ("classifier_scales", "8,10", ("--classifier_scales", "[8.0, 10.0]", "[8.0]")),
        ("num_batches", 2, ("--num_batches", "is 8", "was 4")),
        ("noise", "stream", ("--noise", "stream", "per_image")),
        ("num_chunks", 2, ("--num_chunks", "is 2", "was 1")),
    ],
)
def test_another_configuration_is_refused(world, shared_run, flag, value, said):
    line = refused(world, shared_run, **{flag: value})
    assert all(words in line for words in said), line
    assert "config.yaml" in line and "--overwrite True" in line


@pytest.fixture(scope="module")
def shared_run(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One batch; refused commands leave it as it is."""
    out = tmp_path_factory.mktemp("shared") / "out"
    world.explain(out, num_batches=1)
    return out


@pytest.mark.parametrize("flag", ["model_path", "classifier_path", "data_dir"])
def test_other_weights_and_labels_are_refused_by_their_content(world, shared_run, tmp_path, flag):
    other = tmp_path / "other"
    if flag == "data_dir":
        shutil.copytree(world.data, other)
        rows = (other / "list_attr_celeba.csv").read_text()
        first = next(row for row in rows.splitlines() if row.startswith("000031"))
        turned = first[:-2] + "1" if first.endswith("-1") else first[:-1] + "-1"
        (other / "list_attr_celeba.csv").write_text(rows.replace(first, turned))
    else:
        content = torch.load(world.unet() if flag == "model_path" else world.classifier, weights_only=True)
        part, name = (content, "out.2.bias") if flag == "model_path" else (content["classifier"], "bias")
        part[name] = part[name] + 1e-6
        torch.save(content, other)
    assert f"--{flag}{'' if flag == 'data_dir' else ' is sha256'}" in refused(world, shared_run, **{flag: other})


def test_another_weight_of_the_perceptual_loss_is_another_run(world, tmp_path):
    """The identity names its network as well: one must not stand in the place of the other."""
    flags = {"num_batches": 1, "l_perc_layer": 4}
    world.explain(tmp_path, l_perc=30, **flags)
    assert "--l_perc is 20.0 here, and was 30.0 there" in refused(world, tmp_path, l_perc=20, **flags)
    world.explain(tmp_path, l_perc=30, **flags)


def test_flags_without_effect_may_differ(world, shared_run, tmp_path):
    weights = tmp_path / "elsewhere.pt"
    weights.write_bytes(world.unet().read_bytes())
    before = tree_of(shared_run)
    world.explain(shared_run, num_batches=1, model_path=weights, use_fp16=True, use_ddim=True, gpu="cpu")
    after = tree_of(shared_run)
    assert {name for name in before.keys() | after.keys() if before[name] != after[name]} <= {"Results/exp/config.yaml"}
    world.explain(shared_run, num_batches=1)


@pytest.mark.parametrize("name", ["config.yaml", "CC/CCF/CF/0000001.jpg"])
def test_results_of_which_nothing_is_known_are_refused(world, tmp_path, name):
    path = tmp_path / "Results/exp" / name
    path.parent.mkdir(parents=True)
    path.write_text("seed: 4\n")
    assert str(path if name == "config.yaml" else tmp_path / "Results/exp") in refused(world, tmp_path)


def test_overwrite_starts_afresh_and_touches_nothing_of_others(world, tmp_path):
    world.explain(tmp_path, exp_name="other", num_batches=1)
    before = tree_of(tmp_path)
    world.explain(tmp_path, seed=5, save_x_t=True)
    world.explain(tmp_path, seed=6, num_batches=1, overwrite=True)
    after = tree_of(tmp_path)
    assert {name: after[name] for name in before} == before
    assert len(list((tmp_path / "Results/exp").rglob("CF/*.jpg"))) == 4
    assert not list((tmp_path / "x_t/exp").rglob("*.jpg"))
    assert yaml.safe_load((tmp_path / "Results/exp/config.yaml").read_text())["seed"] == 6
    alone = whole_run(world, tmp_path / "alone", seed=6, num_batches=1)
    assert {k: v for k, v in alone.items() if "/CF/" in k} == {
        k: v for k, v in after.items() if "exp/" in k and "/CF/" in k
    }


def test_the_same_command_would_not_continue_an_interrupted_overwrite(world, tmp_path, monkeypatch):
    for overwrite in (False, True):
        with monkeypatch.context() as patch:
            watched(patch, "load_classifier", lambda _: os.kill(os.getpid(), signal.SIGTERM))
            result = run_main(*world.command(tmp_path, SMALL_FLAGS | {"overwrite": overwrite}))
        assert result.code == EXIT_CONTINUE and "run the same command again" in result.err
        assert ("without --overwrite" in result.err) == overwrite


def test_overwriting_a_chunk_leaves_the_others_and_a_folder_of_another_split(world, tmp_path):
    for chunk in (0, 1):
        world.explain(tmp_path, num_chunks=2, chunk=chunk)
    before = tree_of(tmp_path)
    victim = next((tmp_path / "Results/exp").rglob("CF/0000003.jpg"))
    victim.write_bytes(b"no longer an image")
    world.explain(tmp_path, num_chunks=2, chunk=1, overwrite=True)
    after = tree_of(tmp_path)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"Results/exp/chunk-1_num-chunks-2_config.yaml"}  # it says --overwrite
    assert "--num_chunks" in refused(world, tmp_path, num_chunks=3, overwrite=True)
