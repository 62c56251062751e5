"""CD: do counterfactuals change other attributes as the data set couples them to the one explained?"""

from functools import partial

from dime.core.cli import run
from dime.core.metrics.cd import CD
from dime.core.metrics.scripts import run_metric

main = partial(run_metric, CD, __doc__)

if __name__ == "__main__":
    run(main)
