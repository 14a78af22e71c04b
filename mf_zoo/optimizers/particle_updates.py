"""What an optimizer does to particles, whatever its step is."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from mf_zoo.layers.particles import ParticleInfo, reflect

# What Keras's optimizers keep for each weight that a wall mirrors: by the attribute that lists it,
# `"velocity"` for what changes its sign with the gradient and `"place"` for what is moved as the
# weight is. All else that they keep is made of squares or absolute values, and stays.
_MIRRORED: dict[type, dict[str, str]] = {
    keras.optimizers.SGD: {"momentums": "velocity"},
    keras.optimizers.Adam: {"_momentums": "velocity"},  # and AdamW
    keras.optimizers.Adamax: {"_m": "velocity"},
    keras.optimizers.Nadam: {"_momentums": "velocity"},
    keras.optimizers.Lamb: {"_momentums": "velocity"},
    keras.optimizers.Lion: {"_momentums": "velocity"},
    keras.optimizers.Muon: {"momentums": "velocity"},
    keras.optimizers.RMSprop: {"_momentums": "velocity", "_average_gradients": "velocity"},
    keras.optimizers.ScheduleFreeAdamW: {"_momentums": "place"},
    keras.optimizers.Adadelta: {},
    keras.optimizers.Adafactor: {},
    keras.optimizers.Adagrad: {},
}


class ParticleUpdates:
    """Mixin of Keras optimizers that adds to their step what particles need.

    It stands before the optimizer among the bases of a class. `MeanFieldSGD` is one, and
    `MeanFieldOptimizer` makes one of the optimizer that it is given. Around the optimizer's step
    it does four things, and nothing to a variable that none of them concerns:

    - gradients of particles are multiplied by `n / T`, after clipping, if `mean_field_scaling`;
    - each variable has its own multiple of the learning rate, and one of multiple 0 is left out;
    - times, and vectors (of each particle), do not decay;
    - times are reflected at 0 and `T` after the step, and what the optimizer keeps for them too.

    It overrides private methods of the optimizers of Keras 3.15. Its own private names all speak of
    particles, so that none of them is one of the optimizer's.
    """

    _particle_decay_rate = 1.0  # of the learning rate by which weights decay at the moment

    def _set_particle_rules(
        self,
        time_learning_rate_multiplier: float,
        mean_field_scaling: bool,
        learning_rate_multipliers: Mapping[str, float] | None,
        slots: Mapping[str, str] | None = None,
    ) -> None:
        check_number("time_learning_rate_multiplier", time_learning_rate_multiplier)
        multipliers = {} if learning_rate_multipliers is None else learning_rate_multipliers
        if not isinstance(multipliers, Mapping) or not all(isinstance(p, str) for p in multipliers):
            raise ValueError(
                "`learning_rate_multipliers` must map patterns of names to numbers. "
                f"Received: learning_rate_multipliers={learning_rate_multipliers!r}"
            )
        for pattern, value in multipliers.items():
            check_number(f"learning_rate_multipliers[{pattern!r}]", value)
        if slots is not None and not (
            isinstance(slots, Mapping) and all(v in ("velocity", "place") for v in slots.values())
        ):
            raise ValueError(
                "`slots` must map attributes of the optimizer to 'velocity' or 'place'. "
                f"Received: slots={slots!r}"
            )
        self.time_learning_rate_multiplier = float(time_learning_rate_multiplier)
        self.mean_field_scaling = bool(mean_field_scaling)
        self.learning_rate_multipliers = {p: float(value) for p, value in multipliers.items()}
        self._particle_slots = None if slots is None else dict(slots)

    def _particle_rules(self) -> dict[str, Any]:
        """The arguments that every optimizer of particles has, as a part of its configuration."""
        return {
            "time_learning_rate_multiplier": self.time_learning_rate_multiplier,
            "mean_field_scaling": self.mean_field_scaling,
            "learning_rate_multipliers": dict(self.learning_rate_multipliers),
        }

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Create the slots of `variables` and note what each of them is to the mean field.

        Args:
            variables: the model's trainable variables.

        Raises:
            ValueError: if a pattern of `learning_rate_multipliers` matches no variable, or if it
                is not known how to reflect what the optimizer keeps for times.
        """
        if self.built:
            return
        variables = list(variables)
        infos = [getattr(variable, "mean_field", None) for variable in variables]
        multipliers = _multipliers(variables, infos, self)
        super().build(variables)
        # By index: on TensorFlow `update_step` gets raw variables that lack `mean_field`.
        self._particles = infos
        self._particle_multipliers = multipliers
        self._particle_decays = [_decays(v, info) for v, info in zip(variables, infos, strict=True)]
        moving = zip(infos, multipliers, strict=True)
        self._particle_mirrored = {}
        if any(_is_time(info) and multiplier for info, multiplier in moving):
            self._particle_mirrored = _mirrored(self, len(variables))

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update one variable (TensorFlow, JAX, and optimizers without an update of all)."""
        index = self._get_variable_index(variable)
        rate = self._particle_rate(index, learning_rate)
        gradient = self._particle_force(index, gradient, variable, rate)
        super().update_step(gradient, variable, rate)
        self._reflect_particles(index, variable)

    def _parallel_update_step(self, grads: Any, variables: Any, learning_rate: Any) -> None:
        """Update all variables (torch, where most optimizers update those of one rate together)."""
        indices = [self._get_variable_index(variable) for variable in variables]
        triples = list(zip(indices, grads, variables, strict=True))
        groups = _by_multiplier(triples, [self._particle_multipliers[index] for index in indices])
        shared = []
        if len(groups) > 1:
            # What all variables share, as the product that Nadam keeps, is updated once a step.
            own = [v for v in vars(self).values() if isinstance(v, keras.Variable)]
            shared = [(variable, ops.copy(variable)) for variable in own]
        for members in groups:
            for variable, value in shared:
                variable.assign(value)
            rate = self._particle_rate(members[0][0], learning_rate)
            super()._parallel_update_step(
                [self._particle_force(index, gradient, v, rate) for index, gradient, v in members],
                [v for _, _, v in members],
                rate,
            )
        for index, variable in zip(indices, variables, strict=True):
            self._reflect_particles(index, variable)

    def _particle_multiplier(self, variable: Any) -> float:
        return self._particle_multipliers[self._get_variable_index(variable)]

    def _particle_rate(self, index: int, learning_rate: Any) -> Any:
        multiplier = self._particle_multipliers[index]
        return learning_rate if multiplier == 1.0 else learning_rate * multiplier

    def _particle_force(self, index: int, gradient: Any, variable: Any, rate: Any) -> Any:
        """What the optimizer's step gets for the clipped gradient."""
        info = self._particles[index]
        if info is not None and self.mean_field_scaling and info.num_particles != info.horizon:
            scale = info.num_particles / info.horizon
            gradient = ops.multiply(gradient, ops.cast(scale, gradient.dtype))
        return gradient

    def _reflect_particles(self, index: int, variable: Any) -> None:
        """Fold times into `[0, T]`, and mirror what the optimizer keeps for those past a wall."""
        info = self._particles[index]
        if not _is_time(info):
            return
        reached = ops.convert_to_tensor(variable)
        times, sign = reflect(reached, info.horizon)
        shift = ops.subtract(times, ops.multiply(sign, reached))
        self.assign(variable, times)
        for name, meaning in self._particle_mirrored.items():
            slots = getattr(self, name)
            if slots:
                value = ops.multiply(slots[index], ops.cast(sign, slots[index].dtype))
                if meaning == "place":
                    value = ops.add(value, ops.cast(shift, value.dtype))
                self.assign(slots[index], value)

    def _filter_empty_gradients(self, grads: Any, variables: Any) -> tuple[Any, Any]:
        """Leave out what is frozen before anything is done, clipping by the global norm too."""
        frozen = [self._particle_multiplier(variable) == 0 for variable in variables]
        if all(frozen):
            return [], []
        if any(frozen):
            grads = [g for g, leave in zip(grads, frozen, strict=True) if not leave]
            variables = [v for v, leave in zip(variables, frozen, strict=True) if not leave]
        return super()._filter_empty_gradients(grads, variables)

    def _update_model_variables_moving_average(self, trainable_variables: Any) -> None:
        super()._update_model_variables_moving_average(trainable_variables)
        if self.use_ema:
            averages = self._model_variables_moving_average
            for i, variable in enumerate(trainable_variables):
                # Rounding would have the average drift from a weight that does not move.
                if self._particle_multipliers[i] == 0 and averages[i] is not None:
                    averages[i].assign(variable)

    def _use_weight_decay(self, variable: Any) -> bool:
        index = self._get_variable_index(variable)
        return self._particle_decays[index] and super()._use_weight_decay(variable)

    def _apply_weight_decay(self, variables: Sequence[Any]) -> None:
        # Only what decays, with the user's exclusions too: Keras on torch fails when nothing does.
        variables = [v for v in variables if self._use_weight_decay(v)]
        multipliers = [self._particle_multiplier(variable) for variable in variables]
        for members in _by_multiplier(variables, multipliers):
            self._particle_decay_rate = self._particle_multiplier(members[0])
            try:
                super()._apply_weight_decay(members)
            finally:
                self._particle_decay_rate = 1.0

    def _get_current_learning_rate(self) -> Any:
        rate = super()._get_current_learning_rate()
        return rate if self._particle_decay_rate == 1.0 else rate * self._particle_decay_rate


def check_number(name: str, value: Any) -> None:
    """Refuses a value that is not a finite number >= 0.

    Args:
        name: What the value is called.
        value: The value.

    Raises:
        ValueError: If it is anything else.
    """
    number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not (number and np.isfinite(value) and value >= 0):
        raise ValueError(f"`{name}` must be a finite number >= 0. Received: {name}={value}")


def _is_time(info: ParticleInfo | None) -> bool:
    return info is not None and info.kind == "time"


def _decays(variable: keras.Variable, info: ParticleInfo | None) -> bool:
    """Whether a variable is more than a vector (of each particle) and no time."""
    dimensions = len(variable.shape) - (info is not None)
    return dimensions > 1 and not _is_time(info)


def _multipliers(
    variables: Sequence[keras.Variable],
    infos: Sequence[ParticleInfo | None],
    optimizer: ParticleUpdates,
) -> list[float]:
    """The multiple of the learning rate of each variable."""
    patterns = dict(optimizer.learning_rate_multipliers)
    found = [1.0] * len(variables)
    for pattern, value in patterns.items():
        matched = [i for i, v in enumerate(variables) if _matches(pattern, v.path)]
        if not matched:
            names = dict.fromkeys(name for v in variables for name in v.path.split("/")[:-1])
            raise ValueError(
                "`learning_rate_multipliers` must name trained variables, by patterns of their "
                f"paths, such as {variables[0].path!r}, or of their layers, which are "
                f"{', '.join(names)}. Received: {pattern!r}"
            )
        for i in matched:  # a later pattern takes the place of earlier ones
            found[i] = value
    times = optimizer.time_learning_rate_multiplier
    return [m * times if _is_time(info) else m for m, info in zip(found, infos, strict=True)]


def _matches(pattern: str, path: str) -> bool:
    """Whether a pattern matches a name, or several in a row, of a path of names."""
    names = path.split("/")
    parts = itertools.combinations(range(len(names) + 1), 2)
    return any(fnmatch.fnmatchcase("/".join(names[i:j]), pattern) for i, j in parts)


def _by_multiplier(members: Sequence[Any], multipliers: Sequence[float]) -> list[list[Any]]:
    """Members of equal multiplier together; first those of multiplier 1."""
    groups: dict[float, list[Any]] = {1.0: []}
    for member, multiplier in zip(members, multipliers, strict=True):
        groups.setdefault(multiplier, []).append(member)
    return [group for group in groups.values() if group]


def _mirrored(optimizer: Any, count: int) -> dict[str, str]:
    """What the optimizer keeps for times that a wall mirrors."""
    name = type(optimizer).__name__
    if optimizer._particle_slots is None:
        if isinstance(optimizer, keras.optimizers.Ftrl):
            raise ValueError(
                "Times must be trained by an optimizer that moves them from where they are. Ftrl "
                "makes each weight anew from sums over all steps, which no wall can mirror. "
                "Use another one, or fix the times by `time_learning_rate_multiplier=0`. "
                f"Received: {name}"
            )
        known = [_MIRRORED[cls] for cls in type(optimizer).__mro__ if cls in _MIRRORED]
        if not known:
            raise ValueError(
                "`slots` must say what of that which an optimizer not of Keras keeps for each "
                "weight is mirrored where a time meets a wall, as slots={'momentums': 'velocity'}; "
                f"`{{}}` says that nothing is. Received: slots=None for {name}"
            )
        return dict(known[0])
    for attribute in optimizer._particle_slots:
        kept = getattr(optimizer, attribute, None)
        if not isinstance(kept, (list, tuple)) or len(kept) not in (0, count):
            raise ValueError(
                f"`slots` must name attributes of {name} that list one variable for each trained "
                f"variable, of which there are {count}. Received: {attribute!r}, {kept!r}"
            )
    return dict(optimizer._particle_slots)
