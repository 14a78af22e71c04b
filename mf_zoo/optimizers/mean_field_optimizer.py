"""Any Keras optimizer for particles: blocks with a time of their own."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from mf_zoo.optimizers.particle_updates import ParticleUpdates


@keras.saving.register_keras_serializable(package="mf_zoo")
class MeanFieldOptimizer(keras.optimizers.Optimizer):
    """Wraps a Keras optimizer so that it trains particles as `MeanFieldSGD` does.

    A particle of a `mf_zoo.layers.MeanFieldStage` is a residual block with a time in `[0, T]`. Any
    Keras optimizer trains both; the constraint of the times folds them back into `[0, T]`. The
    wrapper adds to it, around each step of `inner_optimizer`:

    - *rates*: times have a learning rate of their own, and so has whatever
      `learning_rate_multipliers` names;
    - *momentum*: where a time meets a wall, what the optimizer keeps for it is mirrored as well.
      Without that its momentum keeps driving it into the wall;
    - *weight decay*: times do not decay, nor do biases and the scale and shift of normalisation
      layers. Left alone, AdamW pulls times towards 0;
    - *scaling*: gradients of particles are multiplied by `n / T` after clipping, if
      `mean_field_scaling`. To Adam and others that divide a gradient by its own size, that
      matters only next to `epsilon`.

    `MeanFieldOptimizer(keras.optimizers.SGD(...))` trains exactly as `MeanFieldSGD(...)`, which has
    coupled weight decay and noise besides. A model without stages is trained exactly, to the bit,
    as by the inner optimizer with the same exclusions from weight decay.

    **What a wall mirrors.** A time that passes a wall is replaced by its mirror image, and its
    gradients by their negatives. So whatever is odd in the gradients changes its sign (a momentum,
    a first moment: a `"velocity"`), whatever is even stays (a second moment, a norm), and a
    `"place"` is mirrored as the time is. This is known of Keras's optimizers and what derives from
    them, but for `Ftrl`, which cannot move times. For others say it by `slots`: which attributes,
    each of them a list with one variable for each weight, are which. Those that stay are not named.

    The wrapped optimizer belongs to the wrapper from then on: it gets the methods that do all
    this. Its arguments (`clipnorm`, `use_ema`, `gradient_accumulation_steps`, a schedule ...) work
    as before, `optimizer.learning_rate` reads and sets its learning rate, and the wrapper has no
    state of its own. `keras.optimizers.LossScaleOptimizer` goes around the wrapper; `compile` adds
    it in `mixed_float16`. In a `keras.optimizers.MultiOptimizer` wrap the optimizers of its map.

    Args:
        inner_optimizer: `keras.optimizers.Optimizer` that has made no step yet, or what
            `keras.optimizers.get` makes one of, such as `"adamw"`.
        time_learning_rate_multiplier: non-negative float, the times' learning rate in units of the
            optimizer's. At 0 times are fixed.
        mean_field_scaling: bool, whether gradients of particles are multiplied by `n / T`.
        learning_rate_multipliers: as in `MeanFieldSGD`.
        slots: dict of attributes of an optimizer that is not Keras's to `"velocity"` or `"place"`.
        name: string, the name of the optimizer.

    Raises:
        ValueError: if an argument is out of its range, or the optimizer cannot be wrapped.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> from mf_zoo.layers import MeanFieldStage
    >>> from mf_zoo.optimizers import MeanFieldOptimizer
    >>> stage = MeanFieldStage(keras.layers.Dense(4, activation="tanh"), num_particles=3)
    >>> model = keras.Sequential([keras.Input((4,)), stage, keras.layers.Dense(1, name="head")])
    >>> adamw = keras.optimizers.AdamW(1e-3, weight_decay=1e-2)
    >>> multipliers = {"head": 10.0}
    >>> optimizer = MeanFieldOptimizer(adamw, 0.1, learning_rate_multipliers=multipliers)
    >>> model.compile(optimizer, "mse")
    >>> history = model.fit(np.ones((8, 4)), np.ones((8, 1)), verbose=0)

    References:
        - Lu, Ma, Lu, Lu, Ying, "A Mean-field Analysis of Deep ResNet and Beyond", ICML 2020,
          arXiv:2003.05508. (Its domain is `[0, T]`; the boundary by reflection is this package's.)
    """

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer | str,
        time_learning_rate_multiplier: float = 1.0,
        mean_field_scaling: bool = False,
        learning_rate_multipliers: Mapping[str, float] | None = None,
        slots: Mapping[str, str] | None = None,
        name: str | None = None,
    ) -> None:
        inner_optimizer = keras.optimizers.get(inner_optimizer)
        cls = type(inner_optimizer)
        if issubclass(cls, ParticleUpdates):
            raise ValueError(
                "`inner_optimizer` must be one that does not know of particles yet. "
                f"Received: {cls.__name__}"
            )
        if cls.update_step is keras.optimizers.Optimizer.update_step:
            raise ValueError(
                "`inner_optimizer` must make its steps itself, in `update_step`. An optimizer that "
                "leaves them to others goes around MeanFieldOptimizer, or has it in its place. "
                f"Received: {cls.__name__}"
            )
        if inner_optimizer.built:
            raise ValueError(
                "`inner_optimizer` must be wrapped before it is built, that is before its first "
                f"step. Received: {cls.__name__} with {len(inner_optimizer.variables)} variables"
            )
        super().__init__(learning_rate=0.0, name=name)
        ParticleUpdates._set_particle_rules(
            inner_optimizer,
            time_learning_rate_multiplier,
            mean_field_scaling,
            learning_rate_multipliers,
            slots,
        )
        # As assigned by `object`: Keras and TensorFlow would take it for something to be tracked.
        object.__setattr__(inner_optimizer, "__class__", _with_particles(cls))
        self.inner_optimizer = inner_optimizer

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Create the slots of `variables`; see `MeanFieldSGD.build`.

        Args:
            variables: the model's trainable variables.
        """
        if self.built:
            return
        variables = list(variables)
        self.inner_optimizer.build(variables)
        super().build(variables)

    def apply(self, grads: Sequence[Any], trainable_variables: Any = None) -> None:
        """Update variables by their gradients.

        Args:
            grads: gradients, in the order of the variables.
            trainable_variables: the variables, which may be left out when the optimizer is built.
        """
        if trainable_variables is not None:
            trainable_variables = list(trainable_variables)
            self.build(trainable_variables)
        self.inner_optimizer.apply(grads, trainable_variables)

    @property
    def variables(self) -> list[keras.Variable]:
        """The variables of the inner optimizer."""
        return self.inner_optimizer.variables

    @property
    def learning_rate(self) -> Any:
        """The learning rate of the inner optimizer, that of variables without multiplier."""
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        self.inner_optimizer.learning_rate = learning_rate

    @property
    def iterations(self) -> Any:
        """The number of steps that the inner optimizer has made."""
        return self.inner_optimizer.iterations

    @property
    def loss_scale_factor(self) -> float | None:
        """The factor of the loss that the inner optimizer takes back out of gradients."""
        return self.inner_optimizer.loss_scale_factor

    @loss_scale_factor.setter
    def loss_scale_factor(self, value: float | None) -> None:
        if hasattr(self, "inner_optimizer"):  # not when Keras sets its default
            self.inner_optimizer.loss_scale_factor = value

    @property
    def _model_variables_moving_average(self) -> list[Any]:
        # `keras.callbacks.SwapEMAWeights` looks for it, inside of a LossScaleOptimizer too.
        return self.inner_optimizer._model_variables_moving_average

    def scale_loss(self, loss: Any) -> Any:
        """Scale the loss as the inner optimizer does."""
        return self.inner_optimizer.scale_loss(loss)

    def finalize_variable_values(self, var_list: Any) -> None:
        """Put the average of the weights in their place, if the inner optimizer keeps one."""
        self.inner_optimizer.finalize_variable_values(var_list)

    def exclude_from_weight_decay(self, var_list: Any = None, var_names: Any = None) -> None:
        """Exclude more variables from weight decay than times and vectors."""
        self.inner_optimizer.exclude_from_weight_decay(var_list, var_names)

    def set_weights(self, weights: Any) -> None:
        """Set the variables of the inner optimizer."""
        self.inner_optimizer.set_weights(weights)

    # Keras saves and loads the inner optimizer by itself, as an attribute.
    def save_own_variables(self, store: Any) -> None:
        """Save nothing: the state is the inner optimizer's."""

    def load_own_variables(self, store: Any) -> None:
        """Load nothing: the state is the inner optimizer's."""

    def get_config(self) -> dict[str, Any]:
        """Return the configuration, enough to make the same optimizer anew."""
        inner = self.inner_optimizer
        # A shallow copy of the class that the user gave, whose configuration it is. On torch that
        # is a variant of a class of `keras.optimizers`, which no other backend could load.
        classes = type(inner).__mro__[2:]
        given = object.__new__(next(c for c in classes if "backend.torch" not in c.__module__))
        vars(given).update(vars(inner))
        return {
            "name": self.name,
            "inner_optimizer": keras.saving.serialize_keras_object(given),
            **inner._particle_rules(),
            "slots": None if inner._particle_slots is None else dict(inner._particle_slots),
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> MeanFieldOptimizer:
        """Make the optimizer of a configuration."""
        inner = keras.saving.deserialize_keras_object(config["inner_optimizer"], custom_objects)
        return cls(**{**config, "inner_optimizer": inner})


@functools.cache
def _with_particles(cls: type) -> type:
    """The class of an optimizer that knows of particles."""
    names = {"__module__": cls.__module__, "__doc__": cls.__doc__}
    return type(cls.__name__, (ParticleUpdates, cls), names)
