"""Named settings of main.py: --preset NAME gives several flags other defaults; flags that are given win.

A preset is a line here: flags as on the command line. bench/quality.py measures what it is worth; docs/methods.md says
what came out.
"""

from __future__ import annotations

PRESETS: dict[str, dict[str, str]] = {
    "exact": {"method": "dime", "inner_steps": "0"},
    "fast": {"method": "dime", "inner_steps": "1"},
}
"""Name -> flag -> value."""
