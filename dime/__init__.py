"""DiME in Python: realistic counterfactual explanations of any image classifier."""

from pathlib import Path

# dime.core and dime.models lie in this folder once installed, and beside it in a checkout
__path__ = [*__path__, str(Path(__file__).resolve().parent.parent)]
