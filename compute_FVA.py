"""FVA: do counterfactuals show the same person? Share, and mean, of the cosines between VGGFace2 features."""

from dime.core.cli import run
from dime.core.metrics.faces import FACES
from dime.core.metrics.scripts import script_of

main = script_of(FACES, __doc__)

if __name__ == "__main__":
    run(main)
