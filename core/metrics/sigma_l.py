"""sigma_L: how different are the counterfactuals of one image when only the seed changes? Mean LPIPS between them."""

from collections.abc import Sequence
from itertools import combinations

import torch

from dime.core.errors import InputError, UndefinedError
from dime.core.metrics.features import Machine, read_images, shared
from dime.core.metrics.metric import Context, Measurement, Metric, mean, require_one_size, select_pairs
from dime.core.networks.features import load_lpips
from dime.core.results import Pair, ResultTree
from dime.models.perceptual import LPIPSDistance


def diversity(trees: Sequence[ResultTree], lpips: LPIPSDistance, machine: Machine, partition: str) -> Measurement:
    """σ_L: mean LPIPS between the counterfactuals of an image in experiments that differ in their seed.

    Only images in the same quarter of the tree (CC/IC, CCF/ICF) in every experiment count. Raises UndefinedError
    where there is none, InputError for fewer than two experiments.
    """
    if len(trees) < 2:
        raise InputError("sigma_L compares the counterfactuals of at least two experiments, found one")
    experiments = [select_pairs(tree, partition, flipped_only=False) for tree in trees]
    found = [{(p.id, p.correct, p.flipped): p.counterfactual for p in pairs} for pairs in experiments]
    common = sorted(set.intersection(*map(set, found)))
    if not common:
        names = ", ".join(tree.exp_name for tree in trees)
        raise UndefinedError(f"no image lies in the same folder (CC/IC, CCF/ICF) in all of the experiments {names}")
    groups = [[paths[key] for paths in found] for key in common]
    require_one_size([path for group in groups for path in group])

    def compute(images: list[torch.Tensor]) -> torch.Tensor:
        features = [lpips.features(x.to(machine.device)) for x in torch.stack(images, dim=1)]
        pairs = [lpips(a, b) for a, b in combinations(features, 2)]
        return torch.stack(pairs).cpu().double().mean(dim=0)  # on the CPU: not every device has float64

    return mean("sigma_L", torch.cat(shared(groups, read_images, compute, machine)).numpy())


def needs(context: Context, tree: ResultTree) -> tuple[Context, LPIPSDistance]:
    """Several seeds, of which the experiment is one, and LPIPS."""
    if tree not in context.seeds:
        raise InputError(
            "needs --exp-pattern and --exp-values: one method under several seeds, this experiment among them"
        )
    return context, context.once(load_lpips, context.machine.device)


def over_seeds(pairs: Sequence[Pair], context: Context, lpips: LPIPSDistance) -> list[Measurement]:
    """σ_L of all seeds together: the same number for each of them."""
    partition = context.partition or "all"
    return [context.once(diversity, tuple(context.seeds), lpips, context.machine, partition)]


SIGMA_L = Metric(
    rows=("sigma_L",),
    measure=over_seeds,
    needs=needs,
    flipped_only=False,
    printed={"sigma_L": "sigma_L result:"},
    of_seeds=True,
)
