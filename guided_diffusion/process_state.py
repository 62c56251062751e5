"""What differs between the processes of a training, random generators and data position, as plain values."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from guided_diffusion import dist_util, logger


class ProcessState:
    """This process's random generators and its position in the data, where the data can tell it (`state_dict`)."""

    def __init__(self, data: Iterator) -> None:
        self._data = data
        self._loaded: dict[str, Any] = {}

    def gather(self) -> list[dict[str, Any]]:
        """The state of every process, in the order of ranks. Every process calls it."""
        here = {"random": get_random_state(dist_util.dev())}
        if hasattr(self._data, "state_dict"):
            here["data"] = self._data.state_dict()
        return dist_util.gather(here)

    def load(self, ranks: list[dict[str, Any]]) -> None:
        """Restore this process's part of a gathered state; with another number of processes, start fresh."""
        if len(ranks) != dist_util.world_size():
            logger.log(f"saved by {len(ranks)} processes: data order and random numbers start anew")
            return
        self._loaded = ranks[dist_util.rank()]
        if "data" in self._loaded and hasattr(self._data, "load_state_dict"):
            self._data.load_state_dict(self._loaded["data"])
        self.restore_random_generators()  # that they are damaged shows here, beside the name of the file

    def restore_random_generators(self) -> None:
        """Put them where the loaded state has them: the last thing before the first draw."""
        if self._loaded:
            set_random_state(self._loaded["random"], dist_util.dev())


def get_random_state(device: torch.device) -> dict[str, Any]:
    """Python's, numpy's and torch's generators, the one of `device` among them."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    state = {
        "python": {"version": version, "words": list(words), "gauss": gauss},
        "numpy": {
            "name": name,
            "keys": torch.from_numpy(keys.astype(np.int64)),
            "position": position,
            "has_gauss": has_gauss,
            "cached": cached,
        },
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Restore what `get_random_state` gave; a GPU's generator only where there is one."""
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"]), python["gauss"]))
    keys = numpy["keys"].numpy().astype(np.uint32)
    np.random.set_state((numpy["name"], keys, numpy["position"], numpy["has_gauss"], numpy["cached"]))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
