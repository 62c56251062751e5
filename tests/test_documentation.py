"""Every command in the documentation names scripts and flags that exist, and every link leads somewhere."""

import functools
import re
from pathlib import Path

import pytest

from tests.worlds import ROOT, run_script, succeeded

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
