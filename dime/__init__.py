"""DiME in Python: realistic counterfactual explanations of any image classifier.

explain = dime.Explainer(classifier, dime.load_diffusion("demo"), dime.Binary(), dime.preset("demo,fast"))
result = explain(["face.jpg"])
result.images()[0].save("counterfactual.png")
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dime.core.config import preset
    from dime.core.errors import InputError
    from dime.core.explain import Explainer, Explanations
    from dime.core.guidance import Binary, MultiClass
    from dime.core.loaders import load_diffusion
    from dime.core.networks.classifiers import load_classifier
    from dime.core.networks.features import load_perceptual
    from dime.core.settings import Settings

if not Path(__file__).with_name("core").is_dir():  # a checkout has core and models beside this folder, not in it
    __path__ = [*__path__, str(Path(__file__).resolve().parent.parent)]

__all__ = [
    "Binary",
    "Explainer",
    "Explanations",
    "InputError",
    "MultiClass",
    "Settings",
    "load_classifier",
    "load_diffusion",
    "load_perceptual",
    "preset",
]
_PLACES = {
    "config": ("preset",),
    "errors": ("InputError",),
    "explain": ("Explainer", "Explanations"),
    "guidance": ("Binary", "MultiClass"),
    "loaders": ("load_diffusion",),
    "networks.classifiers": ("load_classifier",),
    "networks.features": ("load_perceptual",),
    "settings": ("Settings",),
}
"""The public names, by their modules in dime.core, which are loaded when they are first used: torch takes seconds."""


def __getattr__(name: str) -> Any:
    for module, names in _PLACES.items():
        if name in names:
            return getattr(importlib.import_module(f"dime.core.{module}"), name)
    raise AttributeError(f"module 'dime' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
