"""Stochastic gradient descent for particles: blocks with a time of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from mf_zoo.optimizers.particle_updates import ParticleUpdates, check_number

# What `keras.optimizers.SGD(...)` gives on the active backend. On torch that is a subclass with
# one update over all variables, which rounds differently from SGD.update_step; to build on the
# same class is what makes a model without stages train to the bit as under Keras's SGD.
_SGD: Any = type(keras.optimizers.SGD.__new__(keras.optimizers.SGD))


@keras.saving.register_keras_serializable(package="mf_zoo")
class MeanFieldSGD(ParticleUpdates, _SGD):
    """SGD with momentum for networks whose depth is a measure over particles.

    A particle of a `mf_zoo.layers.MeanFieldStage` is a residual block with a time in `[0, T]`,
    `T` being the stage's horizon. This optimizer moves both (Lu et al., 2020):

    - *blocks* by SGD with momentum;
    - *times* with a learning rate of their own, without weight decay, reflected into `[0, T]`
      after each step. A time that meets a wall has its momentum turned, as a ball has.

    Variables outside stages, and so every model without a stage, are trained exactly, to the bit,
    as by `keras.optimizers.SGD` with the same exclusions from weight decay.

    For a variable `w` of gradient `g`, in this order:

    1. `g` is clipped if `clipnorm`, `clipvalue` or `global_clipnorm` is given;
    2. `g *= n / T` for particles, if `mean_field_scaling`;
    3. weight decay: `w -= rate * weight_decay * w`, or, if `coupled_weight_decay`,
       `g += weight_decay * w`;
    4. noise, if `noise_temperature` is positive (see below);
    5. `velocity = momentum * velocity - rate * g` and `w += velocity` (Nesterov:
       `w += momentum * velocity - rate * g`), `rate` being `learning_rate` times the multiplier
       of `w` (see below);
    6. times and their velocity are reflected at 0 and `T`.

    **The multiplier** of a variable is the value of the last pattern in
    `learning_rate_multipliers` that matches it, and 1 if none does; for times it is multiplied by
    `time_learning_rate_multiplier`. Patterns are those of a shell: `{"*": 0.1, "head*": 1.0}`.
    A pattern matches a variable if it matches a name in its path, or several names in a row:
    `"stage1"` matches all that this stage holds, `"times"` the times of every stage and
    `"stage1/times"` those of one. Multiplier 0 freezes a variable. The optimizer then leaves it out
    as if it were not trained: it does not decay, its momentum stays what it is, and its gradient
    does not count in `global_clipnorm`. (`layer.trainable = False` also stops the statistics of
    BatchNormalization, and saves the computing of gradients.)

    **Weight decay** is for matrices and kernels only: it skips times and every variable that has
    no more than one dimension besides the particle axis, that is biases and the scale and shift
    of normalisation layers, in stages and outside. `exclude_from_weight_decay()` excludes more.
    Keras's decay, the default, acts on the weights alone. The coupled decay is the L2
    regularisation of He et al. (2016) and `torch.optim.SGD`: it passes through the momentum, so at
    equal value it is `1 / (1 - momentum)` times as strong, 10 times at momentum 0.9. Either way
    it belongs to the particle's own potential and is not multiplied by `n / T`.

    **Mean-field scaling.** The loss is a function of the measure `rho = 1/n sum_i delta_i`; each
    particle's gradient is of size `T/n`. Multiplied by `n/T` it is the velocity of the Wasserstein
    gradient flow, and a learning rate means the same at every depth. With the default horizon
    `T = n` there is nothing to multiply. (By the rule `"backward"` the gradient of a time is the
    difference of what two neighbours do, and of size `T/n` only where neighbours are alike. Else
    multiplied times move the faster the more there are: `time_learning_rate_multiplier=T / n` takes
    it back.)

    **Noise** makes it the flow of the loss plus `noise_temperature` times the negative entropy of
    the measure. It enters through the gradient,

        g -= sqrt(2 * (1 - momentum) * noise_temperature / rate) * N(0, I),

    because of two requirements. A single kick `s` of the velocity moves the weight by
    `s / (1 - momentum)` in the end, while the gradient moves it as steps of
    `rate / (1 - momentum)` would. Langevin dynamics with such steps needs displacements of variance
    `2 * noise_temperature * rate / (1 - momentum)`, hence kicks of variance
    `2 * (1 - momentum) * noise_temperature * rate`. The same kicks balance the friction
    `1 - momentum` of the velocity (fluctuation-dissipation of the underdamped dynamics). So at
    small rates a particle in a potential `U` is distributed as `exp(-U / noise_temperature)` for
    every momentum, and at momentum 0 a step adds `sqrt(2 * rate * noise_temperature) * N(0, I)`.
    Where the rate is 0 there is no noise.

    **By name**, `model.compile("MeanFieldSGD")` uses it with its default arguments, once
    `mf_zoo.optimizers` has been imported.

    The boundary by reflection is the paper's domain `[0, T]` made into a rule; the rate of the
    times, the scaling of gradients and the noise are choices of this package, not the paper's.

    Args:
        learning_rate: float, `keras.optimizers.schedules.LearningRateSchedule` or callable.
        momentum: float in [0, 1]. 0 is plain gradient descent.
        nesterov: bool, whether the momentum is Nesterov's.
        weight_decay: non-negative float or `None`.
        coupled_weight_decay: bool, whether weight decay is added to the gradient (after clipping,
            before momentum) instead of Keras's decoupled decay.
        time_learning_rate_multiplier: non-negative float, the times' learning rate in units of
            `learning_rate`. At 0 times are fixed.
        mean_field_scaling: bool, whether gradients of particles are multiplied by `n / T`.
        noise_temperature: non-negative float, temperature of the Langevin noise on particles,
            blocks and times, in units of the loss (times `n / T` if `mean_field_scaling`).
        seed: non-negative int or `None` (a seed drawn at random). It sets the noise; the state of
            the generator is a variable of the optimizer, saved and restored with it.
        learning_rate_multipliers: dict of patterns of names to non-negative floats, the learning
            rates of what they match in units of `learning_rate`; or `None`.
        **kwargs: arguments of every Keras optimizer: `clipnorm`, `clipvalue`, `global_clipnorm`,
            `use_ema`, `ema_momentum`, `ema_overwrite_frequency`, `loss_scale_factor`,
            `gradient_accumulation_steps`, `name`.

    Raises:
        ValueError: if an argument is out of its range, or, when the optimizer is built, if a
            pattern matches no variable.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> from mf_zoo.optimizers import MeanFieldSGD
    >>> model = keras.Sequential([keras.layers.Dense(1)])
    >>> model.compile(MeanFieldSGD(0.1, momentum=0.9, weight_decay=1e-4), "mse")
    >>> history = model.fit(np.ones((8, 2)), np.ones((8, 1)), verbose=0)

    References:
        - Lu, Ma, Lu, Lu, Ying, "A Mean-field Analysis of Deep ResNet and Beyond", ICML 2020,
          arXiv:2003.05508.
        - He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016,
          arXiv:1512.03385.
        - Mei, Montanari, Nguyen, "A mean field view of the landscape of two-layer neural
          networks", PNAS 2018, arXiv:1804.06561 (noisy SGD and its entropy).
    """

    def __init__(
        self,
        learning_rate: Any = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float | None = None,
        coupled_weight_decay: bool = False,
        time_learning_rate_multiplier: float = 1.0,
        mean_field_scaling: bool = False,
        noise_temperature: float = 0.0,
        seed: int | None = None,
        learning_rate_multipliers: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        check_number("weight_decay", 0.0 if weight_decay is None else weight_decay)
        check_number("noise_temperature", noise_temperature)
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or seed < 0):
            raise ValueError(f"`seed` must be an integer >= 0 or None. Received: seed={seed}")
        super().__init__(
            learning_rate=learning_rate,
            momentum=momentum,
            nesterov=nesterov,
            weight_decay=weight_decay,
            **kwargs,
        )
        self._set_particle_rules(
            time_learning_rate_multiplier, mean_field_scaling, learning_rate_multipliers
        )
        self.coupled_weight_decay = bool(coupled_weight_decay)
        self.noise_temperature = float(noise_temperature)
        self.seed = seed
        if self.noise_temperature > 0:
            # The generator counts up from its seed, so neighbouring seeds would give the same
            # noise, shifted by a step. SeedSequence spreads them; 30 bits leave room to count.
            start = np.random.SeedSequence(seed).generate_state(1)[0] >> 2
            self._noise_generator = keras.random.SeedGenerator(int(start))
            self._track_variable(self._noise_generator.state)

    def _particle_force(self, index: int, gradient: Any, variable: Any, rate: Any) -> Any:
        """The clipped gradient with scaling, coupled weight decay and noise."""
        gradient = super()._particle_force(index, gradient, variable, rate)
        if self.coupled_weight_decay and self.weight_decay and self._use_weight_decay(variable):
            value = ops.convert_to_tensor(variable)
            gradient = ops.add(
                gradient, ops.multiply(value, ops.cast(self.weight_decay, value.dtype))
            )
        if self._particles[index] is not None and self.noise_temperature > 0:
            rate = ops.cast(rate, "float32")
            moving = rate > 0
            variance = 2.0 * (1.0 - self.momentum) * self.noise_temperature
            variance = variance / ops.where(moving, rate, 1.0)
            amplitude = ops.where(moving, ops.sqrt(variance), 0.0)
            noise = keras.random.normal(tuple(variable.shape), seed=self._noise_generator)
            gradient = ops.subtract(gradient, ops.cast(amplitude * noise, gradient.dtype))
        return gradient

    def _apply_weight_decay(self, variables: Sequence[Any]) -> None:
        if not self.coupled_weight_decay:
            super()._apply_weight_decay(variables)

    def get_config(self) -> dict[str, Any]:
        """Return the configuration, enough to make the same optimizer anew."""
        return {
            **super().get_config(),
            **self._particle_rules(),
            "coupled_weight_decay": self.coupled_weight_decay,
            "noise_temperature": self.noise_temperature,
            "seed": self.seed,
        }


# For `model.compile("MeanFieldSGD")`: `keras.optimizers.get` looks for a name as it is given, and
# the one that the class is registered under, and saved with, is "mf_zoo>MeanFieldSGD".
keras.saving.get_custom_objects()["MeanFieldSGD"] = MeanFieldSGD
