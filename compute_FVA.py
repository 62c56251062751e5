"""FVA: do counterfactuals show the same person? Share, and mean, of the cosines between VGGFace2 features."""

from functools import partial

from dime.core.cli import run
from dime.core.metrics.faces import FACES
from dime.core.metrics.scripts import run_metric

main = partial(run_metric, FACES, __doc__)

if __name__ == "__main__":
    run(main)
