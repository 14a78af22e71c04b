"""Learning-rate schedules of the recipes, made of Keras's own."""

import keras

from mf_zoo.training.recipes import Recipe


def learning_rate_schedule(
    recipe: Recipe, steps_per_epoch: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Makes the Keras schedule of a recipe.

    Args:
        recipe: Gives `schedule`, `learning_rate`, `epochs` and `warmup_epochs`.
        steps_per_epoch: Optimizer steps in an epoch.

    Returns:
        A schedule of the step, counted from 0. `"step"` is the one of He et al., 2016,
        section 4.2 (their 32k and 48k of 64k iterations are 1/2 and 3/4 of the run);
        `"cosine"` that of Loshchilov and Hutter, 2017, without restarts.

    Example:

    >>> from mf_zoo.training import RECIPES, learning_rate_schedule
    >>> schedule = learning_rate_schedule(RECIPES["paper"], 10)
    >>> [round(float(schedule(step)), 4) for step in (0, 999, 1000, 1500)]
    [0.1, 0.1, 0.01, 0.001]
    """
    rate, steps = recipe.learning_rate, recipe.epochs * steps_per_epoch
    warmup = round(recipe.warmup_epochs * steps_per_epoch)
    schedules = keras.optimizers.schedules
    if recipe.schedule == "step":
        # Keras's boundaries belong to the value before them: the last step of each part.
        boundaries = [steps // 2 - 1, steps * 3 // 4 - 1]
        values = [rate, rate / 10, rate / 100]
        if warmup:
            if warmup >= steps // 2:
                raise ValueError(
                    "The warm-up of a step schedule must end before the first step down, at half "
                    f"of the {recipe.epochs} epochs. Received: warmup_epochs={recipe.warmup_epochs}"
                )
            boundaries, values = [warmup - 1, *boundaries], [rate / 10, *values]
        return schedules.PiecewiseConstantDecay(boundaries, values)
    if not warmup:
        return schedules.CosineDecay(rate, steps)
    start = rate / 25 if recipe.schedule == "one_cycle" else 0.0
    return schedules.CosineDecay(start, steps - warmup, warmup_target=rate, warmup_steps=warmup)
