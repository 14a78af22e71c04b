"""Campaigns: a queue of runs, some at a time, that may be stopped at any moment and is resumed."""

from mf_zoo import lazy

__all__, __getattr__, __dir__ = lazy.attach(
    __name__,
    {
        "COLUMNS": "results",
        "Campaign": "file",
        "Progress": "driver",
        "RUNS": "results",
        "Run": "file",
        "load_campaign": "file",
        "run_campaign": "driver",
    },
)
