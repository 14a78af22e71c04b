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
        # The shallow ensemble.
        "GradientGap": "gap",
        "StageGap": "gap",
        "compare_bounds": "bounds",
        "costate_bounds": "bounds",
        "gradient_bounds": "bounds",
        "gradient_gap": "gap",
        "Constants": "bounds",
        "GradientGapLog": "gap_log",
        "ResidualUnit": "residual_unit",
        "ShallowStage": "ensemble",
        "shallow_twin": "ensemble",
        "state_bounds": "bounds",
        # Local minima.
        "NarrowNetworks": "landscape",
        "Network": "landscape",
        "Problem": "landscape",
        "Run": "landscape",
        "image_problem": "landscape",
        "initial_weights": "landscape",
        "minima": "landscape",
        "sphere": "landscape",
        # Ensemble behaviour.
        "Lesion": "lesions",
        "PathLengths": "paths",
        "Removed": "lesions",
        "Shuffle": "shuffles",
        "gradient_parts": "paths",
        "lesion": "lesions",
        "path_lengths": "paths",
        "shuffle": "shuffles",
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
