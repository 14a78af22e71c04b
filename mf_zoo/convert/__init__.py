"""Conversion of weights: from PyTorch's state dicts, and between mean-field and plain twins."""

from mf_zoo.convert.naming import namings, recognize
from mf_zoo.convert.torch import from_torch
from mf_zoo.convert.twins import to_mean_field, to_plain

__all__ = ["from_torch", "namings", "recognize", "to_mean_field", "to_plain"]
