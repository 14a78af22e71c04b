"""Networks for use: plain Keras layers, compiled functions, and files for other runtimes."""

from mf_zoo.deploy.export import FORMATS, Check, export
from mf_zoo.deploy.fold import fold
from mf_zoo.deploy.inference import inference

__all__ = ["FORMATS", "Check", "export", "fold", "inference"]
