"""Networks for use elsewhere: plain Keras layers, and files for other runtimes."""

from mf_zoo.deploy.export import FORMATS, Check, export
from mf_zoo.deploy.fold import fold

__all__ = ["FORMATS", "Check", "export", "fold"]
