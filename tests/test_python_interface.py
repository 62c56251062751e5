"""For users of Python: what README and notebook say runs as it stands, and what `pip install .` would install."""

import json
import os
import re
import sys
import zipfile
from pathlib import Path

import pytest

import dime
from dime.core.drawn_faces import draw, sample_face
from tests.worlds import ROOT, run_command, succeeded


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


FOLDERS = {"dime": "dime", "core": "dime/core", "models": "dime/models", "guided_diffusion": "guided_diffusion"}
"""A folder of the checkout -> where it lies once installed."""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as site-packages holds it after `pip install .`."""
    pytest.importorskip("setuptools", minversion="77")  # as pyproject.toml wants it: nothing is downloaded here
    folder = tmp_path_factory.mktemp("wheel")
    source, site = folder / "source", folder / "site"
    source.mkdir()
    for name in [*FOLDERS, "pyproject.toml", "setup.py", "README.md", "LICENSE"]:  # nothing is built in the checkout
        (source / name).symlink_to(ROOT / name)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder)]
    succeeded(run_command([sys.executable, "-m", "pip", "wheel", *options, str(source)]))
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    return site


def test_nothing_is_forgotten_and_no_common_name_is_taken(installed):
    expected = {
        Path(place) / path.relative_to(ROOT / folder)
        for folder, place in FOLDERS.items()
        for pattern in ("*.py", "templates/*", "demo/*", "digits/*")
        for path in (ROOT / folder).rglob(pattern)
    }
    found = {path.relative_to(installed) for path in installed.rglob("*") if path.is_file()}
    assert {path for path in found if not path.parts[0].endswith(".dist-info")} == expected
    assert {path.name for path in installed.iterdir() if path.suffix != ".dist-info"} == {"dime", "guided_diffusion"}


def test_it_is_imported_from_anywhere(installed, tmp_path):
    """In an installation dime looks into its own folder only: site-packages may hold a core of somebody else's."""
    (installed / "core").mkdir()
    (installed / "core/__init__.py").write_text("raise ImportError('a stranger')")
    script = """
import dime, dime.core.errors, dime.models, guided_diffusion, pathlib
site = pathlib.Path(dime.__file__).parent.parent
assert list(dime.__path__) == [str(site / "dime")], dime.__path__
for module in (dime.core.errors, dime.models, guided_diffusion):
    assert site in pathlib.Path(module.__file__).parents, module
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PYTHONPATH"] = str(installed)
    succeeded(run_command([sys.executable, "-c", script], cwd=tmp_path, env=environment))
