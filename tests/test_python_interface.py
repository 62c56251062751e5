"""What stands in the README and the notebook for users of Python runs as it stands, from any folder."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest

import dime
from dime.core.drawn_faces import draw, sample_face
from tests.worlds import run_command, succeeded

ROOT = Path(dime.__file__).resolve().parents[1]


def test_every_public_name_is_there_and_documented():
    for name in dime.__all__:
        assert getattr(dime, name).__doc__, name
    assert set(dime.__all__) <= set(dir(dime))
    with pytest.raises(AttributeError, match="no attribute 'Explanator'"):
        _ = dime.Explanator


def test_importing_costs_nothing_until_a_name_is_used():
    command = "import sys, dime; assert 'torch' not in sys.modules; dime.Binary; assert 'torch' in sys.modules"
    succeeded(run_command([sys.executable, "-c", command], cwd=ROOT))


def test_the_readmes_lines(tmp_path, monkeypatch, capsys):
    code = re.search(r"```python\n(import dime\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    draw(sample_face(seed=0, index=3)).save(tmp_path / "face.jpg")
    monkeypatch.chdir(tmp_path)
    exec(code.replace("seed=4", "seed=4, start_step=3"), {})  # a few steps, for time
    assert (tmp_path / "counterfactual.png").exists() and "tensor" in capsys.readouterr().out


def test_the_notebooks_cells():
    cells = json.loads((ROOT / "docs/explain-your-own-model.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    scope: dict = {}
    for cell in code:
        exec(cell.replace("start_step=20", "start_step=4"), scope)
    assert len(code) > 6 and len(scope["result"]) == 4
    assert all(cell.get("outputs", []) == [] for cell in cells)


def test_a_terminal_that_lacks_letters_ends_nothing():
    command = "from dime.core.cli import run; run(lambda: print('caf\\u00e9'))"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    result = run_command([sys.executable, "-c", command], cwd=ROOT, env=environment)
    assert (result.code, result.out) == (0, "caf\\xe9\n"), result.err
