"""COUT: how soon does the decision flip while pixels turn into the counterfactual's, most changed first?"""

from dime.core.cli import run
from dime.core.metrics.cout import COUT
from dime.core.metrics.scripts import script_of

main = script_of(COUT, __doc__)

if __name__ == "__main__":
    run(main)
