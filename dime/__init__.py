"""DiME in Python: realistic counterfactual explanations of any image classifier."""

from pathlib import Path

if not Path(__file__).with_name("core").is_dir():  # a checkout has core and models beside this folder, not in it
    __path__ = [*__path__, str(Path(__file__).resolve().parent.parent)]
