"""What documents promise: commands, flags, links, code for users of Python, and what `pip install .` would install."""

import functools
import json
import os
import re
import sys
import zipfile
from pathlib import Path

import pytest

import dime
from dime.core.drawn_faces import draw, sample_face
from tests.worlds import ROOT, run_command, run_script, succeeded

PAGES = [ROOT / "README.md", *sorted((ROOT / "models").rglob("README.md")), *sorted((ROOT / "docs").glob("*.md"))]


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """(script, flags) of every command in the shell blocks of a page; variables are put in where they stand."""
    found = []
    for block in re.findall(r"```(?:bash|sh)\n(.*?)```", page.read_text(), re.DOTALL):
        text = re.sub(r"\\\n|\n +", " ", block)
        for name, value in re.findall(r'^(\w+)="(.*?)"', text, re.MULTILINE):
            text = text.replace(f"${name}", value)
        for line in text.splitlines():
            script = re.search(r"\b(?:python|torchrun|srun)\b.*?\s([\w-]+\.py)\b(.*)", line)
            if script:
                found.append((script[1], re.findall(r"--([\w-]+)", script[2])))
    return found


@functools.cache
def help_of(script: str) -> str:
    return succeeded(run_script(script.removesuffix(".py"), "--help")).out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_take_the_flags_they_are_given(page):
    if page.parent == ROOT:
        assert [script for script, _ in commands(page)].count("main.py") >= 3
    for script, flags in commands(page):
        known = set(re.findall(r"--([\w-]+)", help_of(script).replace("-\n", "-")))
        spelled = known | {flag.replace("-", "_") for flag in known} | {flag.replace("_", "-") for flag in known}
        assert set(flags) <= spelled, f"{script}: {sorted(set(flags) - spelled)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_public_name_is_documented_and_costs_nothing_until_it_is_used():
    for name in dime.__all__:
        assert getattr(dime, name).__doc__, name
    assert set(dime.__all__) <= set(dir(dime))
    with pytest.raises(AttributeError, match="no attribute 'Explanator'"):
        _ = dime.Explanator
    command = "import sys, dime; assert 'torch' not in sys.modules; dime.Binary; assert 'torch' in sys.modules"
    succeeded(run_command([sys.executable, "-c", command], cwd=ROOT))
    command = "from dime.core.cli import run; run(lambda: print('caf\\u00e9'))"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    result = run_command([sys.executable, "-c", command], cwd=ROOT, env=environment)
    assert (result.code, result.out) == (0, "caf\\xe9\n"), result.err


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


FOLDERS = {"dime": "dime", "core": "dime/core", "models": "dime/models", "guided_diffusion": "guided_diffusion"}
"""A folder of the checkout -> where it lies once installed."""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
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
