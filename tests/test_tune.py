"""tune.py and the inverted method as commands: what they write, and that they go on to the same bytes."""

import sys
from pathlib import Path

import pytest
import yaml

import tune
from dime.core.config import parse_config
from tests.worlds import SMALL_FLAGS

INVERTED = {
    "method": "inverted",
    "outer_steps": 2,
    "repaint": 0.2,
    "fresh_noise": 0.9,
    "confidence": 0.6,
    "shrink": True,
    "classifier_scales": "8,20",
}


def pictures(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.png")}


def test_inversion_goes_on_to_the_same_bytes(world, tmp_path):
    flags = INVERTED | {"num_batches": 2, "batch_size": 2, "image_format": "png", "save_z_t": True, "pad_batches": True}
    world.explain(tmp_path, **flags)
    whole = pictures(tmp_path)
    frames = [name for name in whole if "z_t" in name]
    assert len(frames) == 2 * 4  # two outer steps of four images
    lost = list(tmp_path.rglob("CF/*.png"))[1:3]
    for path in lost:
        path.unlink()
    world.explain(tmp_path, **flags)
    assert pictures(tmp_path) == whole


def test_a_search_goes_on_and_its_preset_is_read(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("dime.core.tuning.KEEPS", 0.0)  # random weights keep no prediction
    out, flags = tmp_path / "tune", SMALL_FLAGS | {"method": "inverted"}
    command = ["--tune_path", str(out), "--tune_images", "2", "--candidates", "2", "--budget", "100000"]

    def search() -> str:
        monkeypatch.setattr(sys, "argv", ["tune.py", *command, *world.command(tmp_path, flags)])
        tune.main()
        return capsys.readouterr().out

    first = search()
    found = {path.name: path.read_bytes() for path in out.iterdir()}
    assert set(found) == {"preset.yaml", "trials.jsonl", "tune.md", "tune.png"}
    chosen = yaml.safe_load(found["preset.yaml"])
    assert chosen["method"] == "inverted" and chosen["start_step"] == 9 and "repaint" in chosen

    monkeypatch.setattr(tune.Tuner, "explain", lambda *_: pytest.fail("everything is known"))
    assert search() == first
    assert parse_config("", ["--preset", str(out / "preset.yaml")]).repaint == chosen["repaint"]
