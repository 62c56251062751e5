"""Does an explanation reveal a planted shortcut? What counterfactuals change besides the attribute asked for, beside
what the classifier truly relies on: how its decision turns when that alone is changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dime.core.errors import InputError
from dime.core.metrics.cd import correlation_difference, correlations
from dime.core.metrics.features import Machine, batches
from dime.core.networks.classifiers import load_classifier, output_column
from dime.core.results import ResultTree
from dime.core.run_config import recorded
from dime.core.truth.cases import Cases, Truth
from dime.core.truth.oracle import outputs_on
from dime.core.truth.rows import Row

CD = "CD"


@dataclass(frozen=True)
class Shortcut:
    """An attribute that a classifier may use in the place of the query; both are attributes that the truth names."""

    query: str
    name: str

    @property
    def row_names(self) -> tuple[str, ...]:
        """The rows of the table: what the explanations tell, then what is true; docs/truth.md says what they mean."""
        told = (CD, f"{self.name}: correlation of changes", f"{self.name}: moves along")
        turned = (f"classifier: turned by {name} alone" for name in (self.query, self.name))
        return (*told, *turned, f"classifier: reliance on {self.name}")

    def told(self, truth: Truth, known: np.ndarray) -> tuple[Row, ...]:
        """What the counterfactuals that reached their target say.

        known: (A,) bool, the attributes that the oracle decides on; CD is taken over those. An image counts for "moves
        along" if its input is not yet at the shortcut's side of the target.
        """
        own = truth.names.index(self.name)
        query, column = (int(known[: truth.names.index(name)].sum()) for name in (self.query, self.name))
        labels = truth.labels()[:, known]

        def correlation(changes: np.ndarray) -> float:
            with np.errstate(invalid="ignore"):
                return float(np.nan_to_num(correlations(changes, query)[column]))

        def changes(c: Cases) -> np.ndarray:
            return (c.cf_seen - c.seen)[:, known]

        def along(c: Cases) -> np.ndarray:
            return np.where(c.seen[:, own] != c.target, c.cf_seen[:, own] == c.target, np.nan)

        cd, correlated, moves_along, *_ = self.row_names
        return (
            Row(cd, changes, lambda v: correlation_difference(labels, v, query).value, "flipped", interval=False),
            Row(correlated, changes, correlation, "flipped"),
            Row(moves_along, along, among="flipped"),
        )

    def true(
        self, trees: Sequence[ResultTree], query_label: int, ids: Sequence[int], truth: Truth, machine: Machine
    ) -> tuple[Row, ...]:
        """What the classifier of some runs goes by: its decisions on images with one attribute turned over.

        ids: in order. Raises InputError where the runs' configurations do not name one classifier, or it is not there.
        """
        network, column = explained_classifier(trees, query_label, machine)

        def logits_on(turned: str) -> np.ndarray:
            """The logits (N,) of the query on the images, with an attribute turned over ('': as they are)."""
            pictures = batches(ids, lambda id: truth.picture(id, turned), machine)
            logits = [outputs_on(np.stack(part), network, machine)[:, column] for part in pictures]
            return torch.cat(logits).double().numpy()

        names = (self.query, self.name)
        before, after = logits_on(""), np.stack([logits_on(name) for name in names], axis=1)
        had = np.stack([truth.has(id)[[truth.names.index(name) for name in names]] for id in ids])
        effects = np.where(had, -1, 1) * (after - before[:, None])  # (N, 2), of giving each of the two
        turned = (after > 0) != (before[:, None] > 0)

        def reliance(effects: np.ndarray) -> float:
            query, shortcut = effects.mean(axis=0)
            return float(shortcut / max(abs(shortcut) + abs(query), np.finfo(float).tiny))

        *_, by_query, by_shortcut, relied_on = self.row_names
        return (
            Row(by_query, lambda c: turned[np.searchsorted(ids, c.ids), 0], among="all"),
            Row(by_shortcut, lambda c: turned[np.searchsorted(ids, c.ids), 1], among="all"),
            Row(relied_on, lambda c: effects[np.searchsorted(ids, c.ids)], reliance, "all"),
        )


def explained_classifier(
    trees: Sequence[ResultTree], query_label: int, machine: Machine
) -> tuple[torch.nn.Module, int]:
    """The classifier that runs explain, and its output. Raises InputError where it cannot be found."""
    paths = set().union(*(recorded(tree, "classifier_path") for tree in trees))
    if len(paths) != 1:
        raise InputError(f"{trees[0].results}: its configuration does not name one classifier_path")
    network = load_classifier(path := paths.pop(), machine.device)
    return network, output_column(network, query_label, path)
