"""What a run says, and that a resumed run's file reads as one run."""

import csv
import sys
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from guided_diffusion import logger


@pytest.fixture(autouse=True)
def fresh():
    yield
    logger.reset()


def dump(**values) -> dict:
    logger.logkvs(values)
    return logger.dumpkvs()


def rows(folder) -> list[dict[str, str]]:
    with (folder / "progress.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_lines_tables_and_means(tmp_path, capsys):
    logger.configure(dir=str(tmp_path))
    logger.log("creating", "model")
    logger.logkv("step", val=3)
    logger.logkv_mean("loss", val=0.25)
    logger.logkv_mean("loss", 0.75)
    with logger.scoped_configure(dir=str(tmp_path / "elsewhere"), format_strs=["log"]):
        logger.log("elsewhere")
    assert logger.getkvs() == logger.dumpkvs() == {"step": 3, "loss": 0.5}
    assert logger.dumpkvs() == {}
    assert dump(step=4, mse=3) == {"step": 4, "mse": 3}  # new names become columns
    assert rows(tmp_path) == [{"loss": "0.5", "step": "3", "mse": ""}, {"loss": "", "step": "4", "mse": "3"}]
    text = (tmp_path / "log.txt").read_text()
    assert "creating model\n" in text and "| loss | 0.5 |" in text
    assert text == capsys.readouterr().out
    assert logger.get_dir() == str(tmp_path)


def test_a_resumed_run_replaces_the_steps_it_repeats(tmp_path):
    for run, steps in (("first", (0, 1, 2, 3)), ("second", (2, 3, 4))):
        logger.configure(dir=str(tmp_path), format_strs=["csv"])
        for step in steps:
            dump(step=step, run=run)
    assert [row["step"] + row["run"] for row in rows(tmp_path)] == ["0first", "1first", "2second", "3second", "4second"]


def test_the_folder_comes_from_the_environment_or_is_a_dated_one(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    logger.log("hello")  # configures
    assert logger.get_dir().startswith(f"{tmp_path}/openai-2")
    monkeypatch.setenv("OPENAI_LOGDIR", str(tmp_path / "logs"))
    monkeypatch.setattr("guided_diffusion.dist_util.rank", lambda: 2)
    logger.configure()
    logger.warn("here")
    dump(step=1)  # in no table of its own
    assert [str(path) for path in (tmp_path / "logs").iterdir()] == [f"{logger.get_dir()}/log-rank002.txt"]


def test_an_unknown_format_is_named(tmp_path):
    with pytest.raises(ValueError, match="'xml': expected one of stdout, log, csv, tensorboard"):
        logger.configure(dir=str(tmp_path), format_strs=["xml"])


@pytest.mark.parametrize("broken", ["progress.csv", "tensorboard"])
def test_what_cannot_be_written_is_left_out_and_said_once(tmp_path, monkeypatch, capsys, broken):
    logger.configure(dir=str(tmp_path), format_strs=["log", "csv", "tensorboard"])
    if broken == "progress.csv":
        (tmp_path / broken).mkdir()
    # None: an import that fails
    stand_in = None if broken == "tensorboard" else SimpleNamespace(SummaryWriter=MagicMock())
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stand_in)
    for step in range(3):
        dump(step=step)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1 and said[0].startswith(f"{broken} cannot be written (")
    assert (tmp_path / "log.txt").read_text().count("| step |") == 3


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger.configure(dir=str(tmp_path), format_strs=["tensorboard"])
    dump(step=7, loss=0.5)
    logger.reset()
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(7, 0.5)]
