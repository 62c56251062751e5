"""Everything that an update changes, and how it goes into a checkpoint set and comes back, to the same bytes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from guided_diffusion import checkpoint_util, logger
from guided_diffusion.checkpoint_set import MODEL, OPTIMIZER, CheckpointFolder, SetPaths, ema_name
from guided_diffusion.process_state import ProcessState
from guided_diffusion.resample import LossAwareSampler, ScheduleSampler

NOTES = "training"
"""The entry of opt*.pt that holds what is not the optimizer's; the optimizer ignores it."""


@dataclass(frozen=True)
class Start:
    """Where a training begins: a network's file and its siblings.

    `is_own`: a set in the output folder, after whose updates it goes on; else the next update has the file's number.
    """

    model_path: str
    siblings: SetPaths
    is_own: bool

    @property
    def number(self) -> int:
        """The number in the name of the file."""
        return self.siblings.number


class TrainState:
    """Network, averaged weights, optimizer, loss scale, timestep sampler, data position and random generators.

    `ema`: rate -> averaged parameters, in the order of `params`.
    """

    def __init__(
        self,
        model: nn.Module,
        ema_rates: list[float],
        opt: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        sampler: ScheduleSampler,
        data: Iterator,
    ) -> None:
        self.model = model
        self.params = list(model.parameters())
        self.ema = {rate: copy.deepcopy(self.params) for rate in ema_rates}
        self.opt = opt
        self.scaler = scaler
        self.sampler = sampler
        self.processes = ProcessState(data)

    @property
    def file_names(self) -> list[str]:
        """The first parts of the names of a set's files, in the order of `contents`."""
        return [MODEL, *(ema_name(rate) for rate in self.ema), OPTIMIZER]

    def contents(self, notes: dict[str, Any], ranks: list[dict[str, Any]]) -> Iterator[tuple[str, Any]]:
        """The files of a set, (name, content) one after another; `ranks`: what `processes.gather()` gave."""
        config = getattr(self.model, "config", None)
        weights = self.model.state_dict()
        yield MODEL, checkpoint_util.portable(weights, config)
        parameter_names = [name for name, _ in self.model.named_parameters()]
        for rate, params in self.ema.items():
            averaged = copy.copy(weights)  # keeps the order and the metadata
            averaged.update(zip(parameter_names, params, strict=True))
            yield ema_name(rate), checkpoint_util.portable(averaged, config)
        notes = {**notes, "scaler": self.scaler.state_dict(), "ranks": ranks}
        if isinstance(self.sampler, LossAwareSampler):
            notes["sampler"] = self.sampler.state_dict()
        yield OPTIMIZER, checkpoint_util.plain({**self.opt.state_dict(), NOTES: notes})

    def load(self, start: Start, check: Callable[[str, dict | None], None]) -> dict[str, Any]:
        """Load a network and what lies beside it; returns the notes, empty in files of other programs.

        `check` sees each network's path and stored configuration first. Averaged weights that are not there start
        from the network. Raises ValueError for another network's files.
        """
        paths = start.siblings
        self._load_network(start.model_path, self.params, check)
        for rate, params in self.ema.items():
            name = ema_name(rate)
            self._load_network(paths[name] if paths.has(name) else start.model_path, params, check)
        if not paths.has(OPTIMIZER):
            logger.log(f"{paths[OPTIMIZER]}: not there, so the optimizer starts anew")
            return {}
        saved = checkpoint_util.load(paths[OPTIMIZER])
        with checkpoint_util.damage_named(paths[OPTIMIZER]):
            notes = saved.get(NOTES, {})
            try:
                checkpoint_util.load_optimizer(self.opt, saved)
            except (ValueError, KeyError, TypeError):
                if notes:
                    raise
                logger.log(f"{paths[OPTIMIZER]}: another optimizer's state, so the optimizer starts anew")
                return {}
            return self._load_notes(notes)

    @torch.no_grad()
    def update_ema(self) -> None:
        """e ← r e + (1 - r) p for each rate r."""
        for rate, params in self.ema.items():
            torch._foreach_lerp_(params, self.params, 1 - rate)

    @contextmanager
    def averaged(self, rate: float) -> Iterator[nn.Module]:
        """The network with the averaged weights of a rate, in eval mode, inside this context."""
        own = [p.detach().clone() for p in self.params]
        self._set_params(self.ema[rate])
        self.model.eval()
        try:
            yield self.model
        finally:
            self.model.train()
            self._set_params(own)

    @torch.no_grad()
    def _set_params(self, values: list[torch.Tensor]) -> None:
        for p, value in zip(self.params, values, strict=True):
            p.copy_(value)

    @torch.no_grad()
    def _load_network(self, path: str, params: list[torch.Tensor], check: Callable[[str, dict | None], None]) -> None:
        """Read a file of the network into `params`; the network's own buffers come along."""
        weights = checkpoint_util.load_state_dict(path)
        check(path, checkpoint_util.stored_config(weights))
        checkpoint_util.require_same_names(self.model, weights, path)
        for (name, _), target in zip(self.model.named_parameters(), params, strict=True):
            target.copy_(weights[name])
        for name, buffer in self.model.named_buffers():
            if name in weights:
                buffer.copy_(weights[name])

    def _load_notes(self, notes: dict[str, Any]) -> dict[str, Any]:
        if self.scaler.is_enabled() and notes.get("scaler"):
            self.scaler.load_state_dict(notes["scaler"])
        if isinstance(self.sampler, LossAwareSampler) and "sampler" in notes:
            self.sampler.load_state_dict(notes["sampler"])
        if "ranks" in notes:
            self.processes.load(notes["ranks"])
        return notes


def find_start(folder: CheckpointFolder, resume_checkpoint: str, continue_folder: bool) -> Start | None:
    """What to resume from: the newest set in the folder, or `resume_checkpoint`; None for a fresh start.

    With both, the folder's sets count if they came of this very `resume_checkpoint`: then the same command is being
    run again. Readies the folder: makes it, tidies it up, and tells it which sets are this training's own.
    Raises OSError for a folder that cannot be written and FileNotFoundError for a missing checkpoint.
    """
    folder.create()
    folder.recover()
    sets = folder.complete_sets() if continue_folder else []
    own = [paths for paths in sets if _read_notes(paths).get("resume_checkpoint") == resume_checkpoint]
    folder.own = sorted(paths.number for paths in own)
    candidates = own if resume_checkpoint else sets
    if candidates:
        return Start(candidates[0][MODEL], candidates[0], is_own=True)
    if resume_checkpoint:
        return Start(resume_checkpoint, SetPaths.of_model(resume_checkpoint), is_own=False)
    return None


def _read_notes(paths: SetPaths) -> dict[str, Any]:
    """The notes of a set on this machine, without reading its tensors; empty in files of other programs."""
    saved = checkpoint_util.load(paths[OPTIMIZER], mmap=True)
    notes = saved.get(NOTES) if isinstance(saved, dict) else None
    return notes if isinstance(notes, dict) else {}
