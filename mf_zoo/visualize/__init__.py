"""Pictures of stages and of their training, and a callback that records it.

Functions draw into axes of matplotlib and return them, in the manner of seaborn's: `ax` is where,
keyword arguments go to the artists. Without `ax` they make a figure, which pyplot does not know:
`ax.figure.savefig("times.png")`, or `ax.figure` as the last line of a notebook's cell.
"""

from mf_zoo import lazy

__all__, __getattr__, __dir__ = lazy.attach(
    __name__,
    {
        # Recording and reading.
        "RecordStages": "recording",
        "StageHistory": "histories",
        "read": "histories",
        # Drawing.
        "depth_order": "drawing",
        "measure": "drawing",
        "step_sizes": "drawing",
        "swaps": "drawing",
        "times": "drawing",
    },
)
