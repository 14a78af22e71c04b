"""Tuning by keras-tuner: a hypermodel of the zoo, and searches that survive kills.

Everything is imported on first use, for keras-tuner is optional.
"""

from mf_zoo import lazy

__all__, __getattr__, __dir__ = lazy.attach(
    __name__,
    {
        "MeanFieldHyperModel": "hypermodel",
        "SPACE": "space",
        "SearchSettings": "settings",
        "ray_recipe": "ray",
        "ray_space": "ray",
        "ray_tune": "ray",
        "tune": "search",
        "work": "chief",
    },
)
