"""A headless browser for pages that were written to disk: its view of them after their scripts have run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1200,800",
    "--virtual-time-budget=5000",  # milliseconds of the page's own clock, which runs as fast as it can
    "--enable-logging=stderr",
)


def require_browser() -> str:
    """The browser's program; the test is skipped, and says why, where there is none or nobody asked for it.

    A headless browser's clock depends on the machine's load, so these tests run when they are asked for.
    """
    if not os.environ.get("DIME_BROWSER_TESTS"):
        pytest.skip("the page is tried in a headless browser when DIME_BROWSER_TESTS is set")
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"no headless browser here: none of {', '.join(NAMES)} is installed")
    return program


def page_after_scripts(path: Path, fragment: str = "") -> str:
    """The page's document once its scripts have run; fails where one of them raised an error."""
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run(
            [require_browser(), *FLAGS, f"--user-data-dir={profile}", "--dump-dom", f"{path.as_uri()}#{fragment}"],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
    assert "Uncaught" not in done.stderr, done.stderr
    return done.stdout


def with_script(page: Path, script: str, policy: bool = False) -> Path:
    """A copy of the page in which a script of ours runs last, with or without the page's security policy."""
    text = page.read_text()
    if not policy:
        text, found = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
        assert found == 1
    copy = page.with_name(f"copy-{page.name}")
    copy.write_text(text.replace("</body>", f"<script>{script}</script></body>"))
    return copy


def title(document: str) -> str:
    """The document's title: what scripts of ours report through."""
    return re.search(r"<title>(.*?)</title>", document, re.DOTALL)[1]
