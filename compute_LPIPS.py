"""sigma_L: how different are the counterfactuals of one image when only the seed changes? Mean LPIPS between them."""

from dime.core.cli import run
from dime.core.metrics.scripts import script_of
from dime.core.metrics.sigma_l import SIGMA_L

main = script_of(SIGMA_L, __doc__)

if __name__ == "__main__":
    run(main)
