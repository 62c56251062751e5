"""No careless loading anywhere: read off all sources outside the tests, with each statement on one line."""

from __future__ import annotations

import ast
import re

import pytest

from tests.worlds import ROOT

PROGRAMS = r"\b(torch\.jit\.load|torch\.export\.load)\b"
CARELESS = re.compile(
    r"\b(th|torch)\.load\((?!.*weights_only=True)|allow_pickle=(?!False)|(?<![\w.])(eval|exec)\(|\bpd\.read_pickle\b"
    r"|\bpickle\.(loads?\b|Unpickler\b(?!\):))|\bfrom _?(pickle|dill|joblib|shelve) import|\bimport (pickle|yaml) as"
    r"|\byaml\.(unsafe_|full_)?load(_all)?\b|" + PROGRAMS
)
"""What runs code that a file holds. A class that inherits Unpickler must choose: see choosing."""
TRUSTED = ROOT / "core" / "networks" / "classifiers.py"
"""Where programs are loaded, once their user has said that he trusts them."""


def offences(source: str, programs: bool = False) -> list[str]:
    """The lines that would run code that a file holds; programs: what loads those may stand there."""
    text = ast.unparse(ast.parse(source))
    careless = [line for line in text.splitlines() if CARELESS.search(line)]
    choosing = text.count("(pickle.Unpickler):") == text.count("def find_class(")
    return [line for line in careless if not (programs and re.search(PROGRAMS, line))] + ["Unpickler"] * (not choosing)


def test_nothing_is_loaded_carelessly():
    found, places = {}, set()
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).parts
        if parts[0] not in ("tests", "build") and not any(p[0] == "." or p == "site-packages" for p in parts):
            places.add(parts[0])
            found[str(path)] = offences(path.read_text(), programs=path == TRUSTED)
    assert {"main.py", "dime", "core", "models", "guided_diffusion", "tools", "slurm", "bench"} <= places
    assert not {path: offending for path, offending in found.items() if offending}


@pytest.mark.parametrize(
    "source",
    [
        *("torch.load(p)", "torch.load(p, weights_only=False)", "torch.load(p, weights_only=safe)", "th.load(\n p)"),
        *("pickle.load(f)", "pickle.loads(b)", "pickle.Unpickler(f).load()", "from pickle import load"),
        *("import pickle as p", "yaml.load(t, Loader=yaml.Loader)", "yaml.unsafe_load(t)", "run(torch.jit.load)"),
        *("np.load(p, allow_pickle=True)", "eval(text)", "class U(pickle.Unpickler):\n    pass"),
    ],
)
def test_the_test_sees_it(source):
    assert offences(source)
    # one that chooses is allowed
    assert offences("class U(pickle.Unpickler):\n    def find_class(self, m, n): ...") == []
