"""Flags from weights, under their former name: core.networks.diffusion has them."""

from dime.core.networks.diffusion import differing_flags, infer_flags

__all__ = ["differing_flags", "infer_flags"]
