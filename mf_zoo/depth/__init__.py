"""Depth as a resolution: a network with more or fewer blocks that stand for the same measure."""

from mf_zoo import lazy

__all__, __getattr__, __dir__ = lazy.attach(
    __name__,
    {
        "Grow": "growth",
        "architecture_of": "resizing",
        "coarsen": "resizing",
        "recalibrate": "recalibration",
        "refine": "resizing",
        "resize": "resizing",
        "rules": "resizing",
    },
)
