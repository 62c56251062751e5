"""Does an explanation reveal a planted shortcut? What counterfactuals change besides the attribute asked for, beside
what the classifier truly relies on: how its decision turns when that alone is drawn over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dime.core.drawn_faces import DRAWN
from dime.core.errors import InputError
from dime.core.evaluation.features import Machine, batches
from dime.core.evaluation.measures import Measurement, mean
from dime.core.metrics import bootstrap_interval, correlation_difference, correlations
from dime.core.networks.classifiers import load_classifier, output_column
from dime.core.results import ResultTree
from dime.core.run_config import recorded
from dime.core.truth.benchmark import Figures
from dime.core.truth.faces import DrawnFaces
from dime.core.truth.oracle import picture_logits

CD = "CD"


@dataclass(frozen=True)
class Shortcut:
    """An attribute that a classifier may use in the place of the query; both are names of DRAWN."""

    query: str
    name: str

    @property
    def rows(self) -> tuple[str, ...]:
        """The rows of the table; docs/truth.md says what they mean."""
        return (CD, self.correlation, self.moves_along, self.turned_by_query, self.turned_by_shortcut, self.reliance)

    @property
    def correlation(self) -> str:
        """Between the oracle's changes of the two."""
        return f"{self.name}: correlation of changes"

    @property
    def moves_along(self) -> str:
        """Share of counterfactuals that change the shortcut too."""
        return f"{self.name}: moves along"

    @property
    def turned_by_query(self) -> str:
        """Share of faces whose decision the query alone turns."""
        return f"classifier: turned by {self.query} alone"

    @property
    def turned_by_shortcut(self) -> str:
        """Share of faces whose decision the shortcut alone turns."""
        return f"classifier: turned by {self.name} alone"

    @property
    def reliance(self) -> str:
        """The shortcut's share of both effects on the logit."""
        return f"classifier: reliance on {self.name}"

    def explained(self, figures: Figures, labels: np.ndarray, known: np.ndarray) -> list[Measurement]:
        """What the counterfactuals that reached their target say; none, where none did.

        labels: (M, A) of the data set, 0 or 1. known: (A,) bool, the attributes that the oracle decides on. CD is taken
        over those. Movable is an image whose input is not yet at the shortcut's side of the target.
        """
        figures = figures.rows(figures.flipped)
        if not len(figures.flipped):
            return []
        changes = (figures.cf_seen - figures.seen)[:, known]
        query, column = (int(known[: DRAWN.index(name)].sum()) for name in (self.query, self.name))
        cd = correlation_difference(labels[:, known], changes, query)
        n = len(changes)
        found = [Measurement(CD, cd.value, n)]

        def correlation(rows: np.ndarray) -> float:
            with np.errstate(invalid="ignore"):
                return float(np.nan_to_num(correlations(changes[rows], query)[column]))

        everything = correlation(np.arange(n))
        found.append(Measurement(self.correlation, everything, n, bootstrap_interval(correlation, n)))
        own = DRAWN.index(self.name)
        movable = figures.seen[:, own] != figures.target
        if movable.any():
            moved = figures.cf_seen[movable, own] == figures.target[movable]
            found.append(mean(self.moves_along, moved.astype(float)))
        return found

    def relied_on(self, tree: ResultTree, ids: Sequence[int], faces: DrawnFaces, machine: Machine) -> list[Measurement]:
        """What the classifier of an experiment truly goes by: its decisions on faces with one attribute drawn over.

        Raises InputError where the experiment's configuration names no classifier, or its file is not there.
        """
        network, column = explained_classifier(tree, faces.task.query_label, machine)

        def logits_on(turned: str) -> np.ndarray:
            """The logits (N,) of the query on the faces, with an attribute drawn over ('': as they are)."""
            parts = batches(ids, lambda id: faces.picture(id, turned), machine)
            logits = [picture_logits(network, np.stack(part), machine)[:, column] for part in parts]
            return torch.cat(logits).double().numpy()

        logits = {name: logits_on(name) for name in ("", self.query, self.name)}
        found, effects = [], {}
        for name, row in ((self.query, self.turned_by_query), (self.name, self.turned_by_shortcut)):
            given = np.array([1 if name not in faces.face(id).has else -1 for id in ids])
            effects[name] = given * (logits[name] - logits[""])
            found.append(mean(row, ((logits[name] > 0) != (logits[""] > 0)).astype(float)))

        def reliance(rows: np.ndarray) -> float:
            shortcut, query = effects[self.name][rows].mean(), effects[self.query][rows].mean()
            return float(shortcut / max(abs(shortcut) + abs(query), np.finfo(float).tiny))

        n = len(ids)
        interval = bootstrap_interval(reliance, n)
        return [*found, Measurement(self.reliance, reliance(np.arange(n)), n, interval)]


def explained_classifier(tree: ResultTree, query_label: int, machine: Machine) -> tuple[torch.nn.Module, int]:
    """The classifier that an experiment explains, and its output. Raises InputError where it cannot be found."""
    paths = recorded(tree, "classifier_path")
    if len(paths) != 1:
        raise InputError(f"{tree.results}: its configuration does not name one classifier_path")
    path = paths.pop()
    network = load_classifier(path, machine.device)
    return network, output_column(network, query_label, path)
