"""Training: recipes, the loop around `model.fit`, its callbacks, and evaluation.

Everything is imported on first use, so that naming a recipe needs no Keras.
"""

from mf_zoo import lazy

__all__, __getattr__, __dir__ = lazy.attach(
    __name__,
    {
        "RECIPES": "recipes",
        "Evaluation": "evaluation",
        "Machine": "settings",
        "Recipe": "recipes",
        "RunError": "runs",
        "Robustness": "robustness",
        "RunSettings": "settings",
        "divide_logits": "calibration",
        "evaluate": "evaluation",
        "evaluate_corruptions": "robustness",
        "evaluate_weights": "runner",
        "fit_temperature": "calibration",
        "get_recipe": "recipes",
        "learning_rate_schedule": "schedules",
        "train": "runner",
    },
)
