"""FID and sFID: are counterfactuals realistic? Frechet distances between inputs and counterfactuals of CCF."""

from dime.core.cli import run
from dime.core.metrics.fid import FID
from dime.core.metrics.scripts import script_of

main = script_of(FID, __doc__)

if __name__ == "__main__":
    run(main)
