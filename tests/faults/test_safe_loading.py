"""No careless loading anywhere, read off the syntax trees of all files outside the tests."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PICKLES = {"pickle", "_pickle", "dill", "joblib", "shelve"}
CARELESS = {
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "eval", "exec", "pd.read_pickle"),
    *(PROGRAMS := ("torch.jit.load", "torch.export.load")),
    *(f"yaml.{name}" for name in ("load", "load_all", "unsafe_load", "unsafe_load_all", "full_load", "full_load_all")),
}
"""What runs code that a file holds. A class that inherits Unpickler and says what it finds is another matter."""
TRUSTED = ROOT / "core" / "networks" / "classifiers.py"
"""Where programs are loaded, once their user has said that he trusts them."""


def sources() -> Iterator[Path]:
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).parts
        if parts[0] not in ("tests", "build") and not any(p[0] == "." or p == "site-packages" for p in parts):
            yield path


def offences(tree: ast.AST, programs: bool = False) -> list[str]:
    """What in a module would run code that a file holds; programs: what loads those may stand there."""
    chosen = {
        base
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and any(getattr(item, "name", "") == "find_class" for item in node.body)
        for base in node.bases
    }
    found = [(node.lineno, ast.unparse(node)) for node in ast.walk(tree) if node not in chosen and _careless(node)]
    return [f"{line}: {text}" for line, text in found if not (programs and text.startswith(PROGRAMS))]


def _careless(node: ast.AST) -> bool:
    if isinstance(node, ast.ImportFrom):
        return node.module in PICKLES
    if isinstance(node, ast.Import):  # under another name its calls would not be seen
        return any(alias.asname for alias in node.names if alias.name in ("pickle", "yaml"))
    if isinstance(node, ast.Attribute):
        return ast.unparse(node) in CARELESS
    if isinstance(node, ast.Call):
        name, options = ast.unparse(node.func), {option.arg: ast.unparse(option.value) for option in node.keywords}
        unsafe = name in ("torch.load", "th.load") and options.get("weights_only") != "True"
        return unsafe or options.get("allow_pickle", "False") != "False" or name in CARELESS
    return False


def test_nothing_is_loaded_carelessly():
    looked_at = list(sources())
    places = {path.relative_to(ROOT).parts[0] for path in looked_at}
    assert {"main.py", "dime", "core", "models", "guided_diffusion", "tools", "slurm", "bench"} <= places
    found = {path: offences(ast.parse(path.read_text()), programs=path == TRUSTED) for path in looked_at}
    assert not {str(path): offending for path, offending in found.items() if offending}


@pytest.mark.parametrize(
    "source",
    [
        *("torch.load(p)", "torch.load(p, weights_only=False)", "torch.load(p, weights_only=safe)"),
        *("pickle.load(f)", "pickle.loads(b)", "pickle.Unpickler(f).load()", "from pickle import load"),
        *("import pickle as p", "yaml.load(t, Loader=yaml.Loader)", "yaml.unsafe_load(t)", "run(torch.jit.load)"),
        *("np.load(p, allow_pickle=True)", "eval(text)", "class U(pickle.Unpickler):\n    pass"),
    ],
)
def test_the_test_sees_it(source):
    assert offences(ast.parse(source))
    # one that chooses is allowed
    assert offences(ast.parse("class U(pickle.Unpickler):\n    def find_class(self, m, n): ...")) == []
