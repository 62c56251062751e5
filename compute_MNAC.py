"""MNAC: how many of the 40 attributes, as the oracle sees them, does a counterfactual change on average?"""

from dime.core.cli import run
from dime.core.metrics.mnac import MNAC
from dime.core.metrics.scripts import script_of

main = script_of(MNAC, __doc__)

if __name__ == "__main__":
    run(main)
