"""No careless loading anywhere, read off the syntax trees of all our files."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("bench", "core", "dime", "guided_diffusion", "models", "slurm", "tools")
SOURCES = sorted([*ROOT.glob("*.py"), *(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))])
PLAIN_PICKLE = {"load", "loads", "Unpickler"}
"""Of the module pickle; a class that inherits Unpickler and says what it finds is no plain one."""
PROGRAMS = {"torch.jit.load", "torch.export.load"}
"""They run what an archive holds: for one place, where the user has said that it is trusted."""
TRUSTED = ROOT / "core" / "networks" / "kinds.py"
UNSAFE_YAML = {"load", "load_all", "unsafe_load", "unsafe_load_all", "full_load", "full_load_all"}


def offences(tree: ast.AST, trusted: bool = False) -> list[str]:
    """What in a module would run code that a file holds; trusted: programs may."""
    found = [] if trusted else [f"{n.lineno}: {p}" for n in ast.walk(tree) for p in PROGRAMS & {_dotted(n)}]
    restricted = {
        base
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and any(getattr(item, "name", "") == "find_class" for item in node.body)
        for base in node.bases
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in ("pickle", "_pickle", "dill", "joblib", "shelve"):
            found.append(f"{node.lineno}: names from {node.module}")
        if isinstance(node, ast.Import) and any(
            alias.asname for alias in node.names if alias.name in ("pickle", "yaml")
        ):
            found.append(f"{node.lineno}: another name for {node.names[0].name}")
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node not in restricted:
            module, name = node.value.id, node.attr
            if (module == "pickle" and name in PLAIN_PICKLE) or (module == "yaml" and name in UNSAFE_YAML):
                found.append(f"{node.lineno}: {module}.{name}")
        if isinstance(node, ast.Call):
            found += _careless_call(node)
    return found


def _dotted(node: ast.AST) -> str:
    return ast.unparse(node) if isinstance(node, ast.Attribute) else ""


def _careless_call(call: ast.Call) -> list[str]:
    name = ast.unparse(call.func)
    options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if name in ("torch.load", "th.load") and options.get("weights_only") != "True":
        return [f"{call.lineno}: {name} without weights_only=True"]
    if options.get("allow_pickle", "False") != "False":
        return [f"{call.lineno}: allow_pickle"]
    if name in ("eval", "exec", "pd.read_pickle"):
        return [f"{call.lineno}: {name}"]
    return []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_loaded_carelessly(path):
    assert offences(ast.parse(path.read_text()), trusted=path == TRUSTED) == []


def test_every_source_is_looked_at():
    tracked = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=False)
    ours = {ROOT / name for name in tracked.stdout.split() if not name.startswith(("tests/", "demo/"))}
    assert ours <= set(SOURCES)


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "torch.load(p, weights_only=safe)",
        "pickle.load(f)",
        "pickle.loads(b)",
        "pickle.Unpickler(f).load()",
        "from pickle import load",
        "import pickle as p",
        "yaml.load(t, Loader=yaml.Loader)",
        "yaml.unsafe_load(t)",
        "np.load(p, allow_pickle=True)",
        "torch.jit.load(p)",
        "run(torch.export.load)",
        "eval(text)",
    ],
)
def test_the_test_sees_it(source):
    assert offences(ast.parse(source))


def test_an_unpickler_that_chooses_is_allowed():
    assert offences(ast.parse("class U(pickle.Unpickler):\n    def find_class(self, m, n): ...")) == []
    assert offences(ast.parse("class U(pickle.Unpickler):\n    pass"))
