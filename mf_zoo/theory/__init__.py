"""The mean-field theory of deep residual networks as functions to run on any network."""

from mf_zoo import lazy

__all__, __getattr__, __dir__ = lazy.attach(
    __name__,
    {
        # Derivatives.
        "cut": "segments",
        "variables_vjp": "autodiff",
        "vjp": "autodiff",
        # Ensemble behaviour.
        "Lesion": "lesions",
        "PathLengths": "paths",
        "Removed": "lesions",
        "Shuffle": "shuffles",
        "gradient_parts": "paths",
        "lesion": "lesions",
        "path_lengths": "paths",
        "shuffle": "shuffles",
    },
)
