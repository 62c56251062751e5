"""What `pip install .` would install: every module and every file beside them, under names that are ours alone."""

from __future__ import annotations

import os
import sys
import zipfile
from pathlib import Path

import pytest

from tests.worlds import ROOT, run_command, succeeded

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
