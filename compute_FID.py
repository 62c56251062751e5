"""FID and sFID: are counterfactuals realistic? Frechet distances between inputs and counterfactuals of CCF."""

from functools import partial

from dime.core.cli import run
from dime.core.metrics.fid import FID
from dime.core.metrics.scripts import run_metric

main = partial(run_metric, FID, __doc__)

if __name__ == "__main__":
    run(main)
