"""CD: do counterfactuals change other attributes as the data set couples them to the one explained?"""

from dime.core.cli import run
from dime.core.metrics.cd import CD
from dime.core.metrics.scripts import script_of

main = script_of(CD, __doc__)

if __name__ == "__main__":
    run(main)
