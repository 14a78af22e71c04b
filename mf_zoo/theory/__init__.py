"""The mean-field theory of deep residual networks as functions to run on any network."""

from mf_zoo import lazy

__all__, __getattr__, __dir__ = lazy.attach(
    __name__,
    {
        # The adjoint.
        "Adjoint": "costate",
        "Reconstruction": "reconstruction",
        "adjoint": "costate",
        "adjoints": "costate",
        "gradient_field": "field",
        "reconstruct": "reconstruction",
        # Derivatives.
        "cut": "segments",
        "variables_vjp": "autodiff",
        "vjp": "autodiff",
    },
)
