"""Does an explanation reveal a planted shortcut? What counterfactuals change besides the attribute asked for, beside
what the classifier truly relies on: how its decision turns when that alone is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dime.core.checkpoints import load_classifier, output_column
from dime.core.errors import InputError
from dime.core.evaluation.features import Machine, batches
from dime.core.metrics import correlation_difference, correlations
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

        cd, correlated, along, *_ = self.row_names
        return (
            Row(
                cd,
                lambda c: (c.cf_seen - c.seen)[:, known],
                lambda changes: correlation_difference(labels, changes, query).value,
                among="flipped",
                interval=False,
            ),
            Row(correlated, lambda c: (c.cf_seen - c.seen)[:, known], correlation, among="flipped"),
            Row(
                along,
                lambda c: np.where(c.seen[:, own] != c.target, c.cf_seen[:, own] == c.target, np.nan),
                among="flipped",
            ),
        )

    def true(self, tree: ResultTree, query_label: int, ids: Sequence[int], truth: Truth, machine: Machine) -> list[Row]:
        """What the classifier of an experiment goes by: its decisions on images with one attribute turned over.

        ids: in order. Raises InputError where the experiment's configuration names no classifier, or it is not there.
        """
        network, column = explained_classifier(tree, query_label, machine)

        def logits_on(turned: str) -> np.ndarray:
            """The logits (N,) of the query on the images, with an attribute turned over ('': as they are)."""
            parts = batches(ids, lambda id: truth.picture(id, turned), machine)
            return (
                torch.cat([outputs_on(np.stack(part), network, machine)[:, column] for part in parts]).double().numpy()
            )

        before = logits_on("")
        has = np.stack([truth.has(id) for id in ids])
        turned, effects = [], []
        for name in (self.query, self.name):
            after = logits_on(name)
            given = np.where(has[:, truth.names.index(name)], -1, 1)
            turned.append((after > 0) != (before > 0))
            effects.append(given * (after - before))

        def reliance(effects: np.ndarray) -> float:
            query, shortcut = effects.mean(axis=0)
            return float(shortcut / max(abs(shortcut) + abs(query), np.finfo(float).tiny))

        def of_images(values: np.ndarray) -> Callable[[Cases], np.ndarray]:
            return lambda c: values[np.searchsorted(ids, c.ids)]

        *_, by_query, by_shortcut, relied_on = self.row_names
        return [
            Row(by_query, of_images(turned[0]), among="all"),
            Row(by_shortcut, of_images(turned[1]), among="all"),
            Row(relied_on, of_images(np.stack(effects, axis=1)), reliance, among="all"),
        ]


def explained_classifier(tree: ResultTree, query_label: int, machine: Machine) -> tuple[torch.nn.Module, int]:
    """The classifier that an experiment explains, and its output. Raises InputError where it cannot be found."""
    paths = recorded(tree, "classifier_path")
    if len(paths) != 1:
        raise InputError(f"{tree.results}: its configuration does not name one classifier_path")
    path = paths.pop()
    network = load_classifier(path, machine.device)
    return network, output_column(network, query_label, path)
