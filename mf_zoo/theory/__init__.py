"""The mean-field theory of deep residual networks as functions to run on any network."""

from mf_zoo import lazy

__all__, __getattr__, __dir__ = lazy.attach(
    __name__,
    {
        # Derivatives.
        "cut": "segments",
        "variables_vjp": "autodiff",
        "vjp": "autodiff",
        # Limits in depth.
        "DepthError": "limits",
        "DepthFit": "limits",
        "Refinement": "limits",
        "Smoothness": "regularity",
        "depth_error": "limits",
        "depth_exponent": "regularity",
        "fit_depth_error": "limits",
        "refined_output": "limits",
        "refinement_error": "limits",
        "smoothness": "regularity",
    },
)
