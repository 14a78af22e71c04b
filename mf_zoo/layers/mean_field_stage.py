"""A stage of residual blocks that are particles, applied in the order of their times."""

import inspect
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from mf_zoo.layers import quadrature as quadrature_rules
from mf_zoo.layers.particles import ParticleInfo, PerParticle, Reflect


class _Template:
    """One copy of the residual function, hidden from Keras's tracking of sublayers.

    Its variables hold no weights: in a call each is given one particle's value.
    """

    def __init__(self, layer: keras.layers.Layer):
        self.layer = layer
        # The stage's own weights carry the regularizers; the block's must not count twice.
        for variable in layer.variables:
            variable.regularizer = None
        self.takes_training = "training" in inspect.signature(layer.call).parameters
        self.frozen = False
        self.trainable_flags = [(part, part.trainable) for part in layer._flatten_layers()]

    def freeze(self, frozen: bool) -> None:
        """Follows the stage's `trainable`: a frozen BatchNormalization keeps its statistics."""
        if frozen == self.frozen:
            return
        self.frozen = frozen
        if frozen:
            self.layer.trainable = False
        else:
            for part, trainable in self.trainable_flags:
                part.trainable = trainable


@keras.saving.register_keras_serializable(package="mf_zoo")
class MeanFieldStage(keras.layers.Layer):
    """Residual blocks as particles `(theta_i, t_i)`: a stage of a mean-field ResNet.

    The stage holds an empirical measure of `n` particles, each a residual block with its own
    weights `theta_i` and its own time `t_i` in `[0, T]`. A call sorts them by time and steps

        `X^l = activation(X^(l-1) + dt_l f(X^(l-1), theta^l))`,    `l = 1 ... n`,

    where the quadrature rule makes the step sizes `dt_l` from the sorted times. Training moves
    blocks and times together, so blocks drift in depth and overtake one another. A particle keeps
    its place in storage for life: only the depth order changes, so the state of any optimizer, and
    BatchNormalization's statistics, stay with their particle.

    With the default horizon `T = n` and grid times every step is 1: the stage then is the ordinary
    stack of residual blocks with the same weights.

    Args:
        block: The residual function `f`: a `keras.layers.Layer`, serialisable, whose output has
            the shape of its input. It serves as a pattern: the stage makes `n` copies, each with
            its own initial weights and seeds. A block whose output is linear in some of its
            variables (a last scale and shift) may name them in a property
            `output_scale_variables`; the step size is then folded into them, at no cost.
        num_particles: Number `n` of blocks.
        quadrature: `"backward"` (the paper's), `"midpoint"`, `"uniform"`,
            `"uniform_straight_through"`, or a rule of your own: see
            `mf_zoo.layers.QuadratureRule`.
        horizon: Length `T` of the time interval; `None` for `n`.
        initial_times: `"grid"` (equal steps), `"random"` (independent, uniform on `[0, T]`) or `n`
            numbers in `[0, T]`. (This choice, like the reflection at the walls, is ours; the paper
            leaves it open.)
        train_times: Whether the times are trainable.
        activation: Applied after each step; `None` for no activation.
        unroll: Whether the loop over depth is unrolled into the graph, the default and the faster
            way. `False` runs `keras.ops.scan`, whose compilation does not grow with depth, on
            backends that can train through it (JAX, PyTorch).
        seed: Seed of random initial times.
        reorder: Whether the blocks are applied in the order of their times. With `False` the order
            is that of storage, for good, and the block at depth `l` takes the step at the `l`-th
            smallest time: the times are a set of nodes, a crossing is a change of names that no
            output sees, and the gradient of a time is that of the place it has when sorted. For
            telling what learned steps do from what reordering does.
        remat: Whether the activations within a block are computed again in the backward pass
            instead of being kept (`keras.remat`): of each block its input is kept, for about one
            more forward pass a step. Results are the same; what a block draws at random, too. (On
            JAX's CPU nothing is saved unless `unroll=False`: XLA merges the second computation of
            an unrolled loop with the first there.)
        **kwargs: Keyword arguments of `keras.layers.Layer`.

    Attributes:
        times: Variable `(n,)`, float32, kept in `[0, T]` by reflection.
        horizon: The float `T`.

    Call arguments:
        inputs: Float tensor, batch first, of a shape that `block` preserves.
        training: Whether blocks run in training mode.

    Raises:
        ValueError: For a block that changes the shape, or arguments out of range.

    Source: Lu, Ma, Lu, Lu, Ying, *A Mean-field Analysis of Deep ResNet and Beyond*, ICML 2020,
    arXiv 2003.05508.

    Example:

    >>> stage = MeanFieldStage(BasicBlock(16), num_particles=3, activation="relu")
    >>> stage(keras.ops.ones((2, 8, 8, 16))).shape
    (2, 8, 8, 16)
    >>> stage.depth_order(), stage.step_sizes()  # [0, 1, 2], [1.0, 1.0, 1.0]
    """

    def __init__(
        self,
        block: keras.layers.Layer,
        num_particles: int,
        quadrature: Any = "backward",
        horizon: float | None = None,
        initial_times: str | Sequence[float] = "grid",
        train_times: bool = True,
        activation: Any = None,
        unroll: bool = True,
        seed: int | None = None,
        reorder: bool = True,
        remat: bool = False,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if not isinstance(block, keras.layers.Layer):
            raise ValueError(f"`block` must be a keras.layers.Layer. Received: block={block!r}")
        if not isinstance(num_particles, int) or num_particles < 1:
            raise ValueError(
                "`num_particles` must be an integer of at least 1. "
                f"Received: num_particles={num_particles!r}"
            )
        if horizon is not None and not (np.isfinite(horizon) and horizon > 0):
            raise ValueError(
                f"`horizon` must be None or a positive number. Received: horizon={horizon!r}"
            )
        if not unroll and keras.backend.backend() == "tensorflow":
            raise ValueError(
                "`unroll=False` needs a backend whose `keras.ops.scan` can be trained through: "
                "jax or torch. Received: unroll=False on the tensorflow backend"
            )
        # Kept as a description: as an attribute, the layer itself would be tracked as a part.
        self._block_class, self._block_config = type(block), block.get_config()
        self._serialized_block = keras.saving.serialize_keras_object(block)
        self.num_particles = num_particles
        self.quadrature = quadrature_rules.get(quadrature)
        self.horizon = float(num_particles if horizon is None else horizon)
        self.initial_times = self._check_initial_times(initial_times)
        self.train_times = bool(train_times)
        self.activation = keras.activations.get(activation)
        self.unroll = bool(unroll)
        self.seed = seed
        self.reorder = bool(reorder)
        self.remat = bool(remat)
        self._template: _Template | None = None

    def _check_initial_times(self, initial_times: Any) -> str | list[float]:
        if isinstance(initial_times, str):
            if initial_times in ("grid", "random"):
                return initial_times
        else:
            times = np.asarray(initial_times, "float64")
            if times.shape == (self.num_particles,) and np.all(
                (times >= 0) & (times <= self.horizon)
            ):
                return times.tolist()
        raise ValueError(
            '`initial_times` must be "grid", "random" or '
            f"{self.num_particles} numbers in [0, {self.horizon}]. "
            f"Received: initial_times={initial_times!r}"
        )

    def _copy_of_block(self, index: int) -> keras.layers.Layer:
        """A fresh block; explicit seeds in its configuration differ from copy to copy."""

        def reseed(config: Any) -> Any:
            if isinstance(config, dict):
                return {
                    key: value + index
                    if key == "seed" and isinstance(value, int)
                    else reseed(value)
                    for key, value in config.items()
                }
            if isinstance(config, (list, tuple)):
                return type(config)(reseed(value) for value in config)
            return config

        return self._block_class.from_config(reseed(self._block_config))

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        n = self.num_particles
        input_shape = tuple(input_shape)
        copies = [self._copy_of_block(i) for i in range(n)]
        for copy in copies:
            output = copy(keras.KerasTensor(input_shape, dtype=self.compute_dtype))
            output_shape = getattr(output, "shape", None)
            if output_shape is None or tuple(output_shape) != input_shape:
                raise ValueError(
                    "`block` must preserve the shape of its input, as a residual function does. "
                    f"Received: block={copy.name!r} that turns {input_shape} into {output_shape}"
                )
        self.times = self.add_weight(
            shape=(n,),
            initializer=self._times_initializer(),
            dtype="float64" if self.variable_dtype == "float64" else "float32",
            trainable=self.train_times,
            autocast=False,
            constraint=Reflect(self.horizon),
            name="times",
        )
        self.times.mean_field = ParticleInfo("time", n, self.horizon)

        template = copies[0]
        per_copy = [copy.variables for copy in copies]
        scaled = {id(v) for v in getattr(template, "output_scale_variables", ())}
        self._stacked = []
        self._folded = tuple(k for k, v in enumerate(template.variables) if id(v) in scaled)
        if len(self._folded) != len(scaled):
            raise ValueError(
                "`output_scale_variables` must list variables of the block. "
                f"Received: {template.output_scale_variables}"
            )
        for k, variable in enumerate(template.variables):
            parts = [variables[k] for variables in per_copy]

            def initializer(shape: Any, dtype: Any = None, parts: list = parts) -> Any:
                return ops.stack([part.value for part in parts])

            weight = self.add_weight(
                shape=(n, *variable.shape),
                initializer=initializer,
                dtype=variable.dtype,
                trainable=variable.trainable,
                autocast=variable._autocast,
                aggregation=variable.aggregation,
                regularizer=variable.regularizer and PerParticle(variable.regularizer, "sum"),
                constraint=variable.constraint and PerParticle(variable.constraint, "stack"),
                name="_".join(variable.path.split("/")[-2:]),
            )
            weight.mean_field = ParticleInfo("block", n, self.horizon)
            self._stacked.append(weight)
        self._template = _Template(template)

    def _times_initializer(self) -> Any:
        if self.initial_times == "random":
            return keras.initializers.RandomUniform(0.0, self.horizon, seed=self.seed)
        if self.initial_times == "grid":
            times = quadrature_rules.grid(self.quadrature, self.num_particles, self.horizon)
        else:
            times = np.asarray(self.initial_times)
        return lambda shape, dtype=None: ops.convert_to_tensor(times.astype("float64"), dtype)

    def pattern(self) -> keras.layers.Layer:
        """The residual function as a layer without weights of its own: what particles share.

        Its variables have the names, shapes and flags of a particle's, not the values. (No
        attribute, for Keras would save it with the stage.)

        Returns:
            The layer, of a stage that has been built.
        """
        return self._template.layer

    def depth_order(self) -> Any:
        """Which particle is applied first, second, ...: `argsort(times)`, ties by storage index.

        Returns:
            Integer tensor `(n,)`; `0 ... n - 1` without `reorder`.
        """
        return self._schedule()[0]

    def step_sizes(self) -> Any:
        """Step sizes `dt_l` in depth order: entry `l` belongs to particle `depth_order()[l]`.

        Returns:
            Float tensor `(n,)`, in units of time (those of `horizon`).
        """
        return self._schedule()[1]

    def _schedule(self) -> tuple[Any, Any]:
        times = self.times.value
        order = ops.argsort(times)
        steps = self.quadrature(ops.take(times, order), self.horizon)
        if not self.reorder:
            order = ops.arange(self.num_particles, dtype="int32")
        return order, steps

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        self._template.freeze(not self.trainable)
        order, steps = self._schedule()
        values = [ops.take(weight.value, order, axis=0) for weight in self._stacked]
        for k in self._folded:
            shape = (self.num_particles,) + (1,) * (len(values[k].shape) - 1)
            values[k] = values[k] * ops.cast(ops.reshape(steps, shape), values[k].dtype)
        # Explicitly: a direct `call`, as in `stateless_call`, leaves no call context behind.
        arguments = {"training": training} if self._template.takes_training else {}
        loop = self._unrolled if self.unroll else self._scanned
        outputs, states, losses = loop(inputs, values, steps, arguments)
        for loss in losses:
            self.add_loss(loss)
        if states:
            position = ops.argsort(order)
            for k, state in states.items():
                self._stacked[k].assign(ops.take(state, position, axis=0))
        return outputs

    def _step(
        self, x: Any, values: Sequence[Any], step: Any, arguments: dict[str, Any]
    ) -> tuple[Any, dict[int, Any], list[Any]]:
        """One block: its output, its new state by weight index, and the losses it added."""
        if not self.remat:
            return self._block_step(x, values, step, arguments)
        # What takes no gradient, such as the state of a seed, is none of the arguments:
        # TensorFlow would warn of it.
        floats = {k: v for k, v in enumerate(values) if keras.backend.is_float_dtype(v.dtype)}
        changed: list[int] = []

        def flat(x: Any, step: Any, *parts: Any) -> list[Any]:
            given = dict(enumerate(values)) | dict(zip(floats, parts, strict=True))
            y, states, losses = self._block_step(x, list(given.values()), step, arguments)
            changed[:] = states
            return [y, *states.values(), *losses]

        y, *others = keras.remat(flat)(x, step, *floats.values())
        losses = others[len(changed) :]
        return y, dict(zip(changed, others, strict=False)), losses

    def _block_step(
        self, x: Any, values: Sequence[Any], step: Any, arguments: dict[str, Any]
    ) -> tuple[Any, dict[int, Any], list[Any]]:
        layer = self.pattern()
        mapping = list(zip(layer.variables, values, strict=True))
        with keras.StatelessScope(mapping, collect_losses=True) as scope:
            before = [scope.get_current_value(variable) for variable, _ in mapping]
            update = layer(x, **arguments)
            after = [scope.get_current_value(variable) for variable, _ in mapping]
        states = {
            k: new for k, (old, new) in enumerate(zip(before, after, strict=True)) if new is not old
        }
        if not self._folded:
            update = update * ops.cast(step, update.dtype)
        return self.activation(x + update), states, list(scope.losses)

    def _unrolled(
        self, x: Any, values: list[Any], steps: Any, arguments: dict[str, Any]
    ) -> tuple[Any, dict[int, Any], list[Any]]:
        n = self.num_particles
        # One split: its gradient is one concatenation, that of n slices a sum of n padded arrays.
        parts = list(zip(*(ops.unstack(value, n) for value in values), strict=True))
        parts = parts or [()] * n
        losses, states = [], []
        for part, step in zip(parts, ops.unstack(steps, n), strict=True):
            x, state, added = self._step(x, part, step, arguments)
            states.append(state)
            losses += added
        return x, {k: ops.stack([state[k] for state in states]) for k in states[0]}, losses

    def _scanned(
        self, x: Any, values: list[Any], steps: Any, arguments: dict[str, Any]
    ) -> tuple[Any, dict[int, Any], list[Any]]:
        changed: list[int] = []

        def body(carry: Any, particle: Any) -> tuple[Any, Any]:
            part, step = particle
            y, states, losses = self._step(carry, part, step, arguments)
            changed[:] = states
            total = ops.cast(sum(losses), "float32") if losses else ops.zeros(())
            return y, [total, *states.values()]

        x, (total, *states) = ops.scan(body, x, (values, steps))
        return x, dict(zip(changed, states, strict=True)), [ops.sum(total)]

    def save_own_variables(self, store: Any) -> None:
        # By name, not by place: the same whether times are trained or not.
        store["times"] = self.times.numpy()
        for k, weight in enumerate(self._stacked):
            store[f"block_{k}"] = weight.numpy()

    def load_own_variables(self, store: Any) -> None:
        variables = {"times": self.times}
        variables |= {f"block_{k}": weight for k, weight in enumerate(self._stacked)}
        if set(store.keys()) != set(variables):
            raise ValueError(
                f"Stage {self.name!r} expects the arrays {sorted(variables)}. "
                f"Received: {sorted(store.keys())}"
            )
        for key, variable in variables.items():
            if tuple(store[key].shape) != tuple(variable.shape):
                raise ValueError(
                    f"Stage {self.name!r} expects the shape {tuple(variable.shape)} for {key!r}. "
                    f"Received: {tuple(store[key].shape)}"
                )
        for key, variable in variables.items():
            variable.assign(store[key])

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "block": self._serialized_block,
            "num_particles": self.num_particles,
            "quadrature": quadrature_rules.serialize(self.quadrature),
            "horizon": self.horizon,
            "initial_times": self.initial_times,
            "train_times": self.train_times,
            "activation": keras.activations.serialize(self.activation),
            "unroll": self.unroll,
            "seed": self.seed,
            "reorder": self.reorder,
            "remat": self.remat,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "MeanFieldStage":
        config = dict(config)
        for key in ("block", "quadrature"):
            if isinstance(config[key], dict):
                config[key] = keras.saving.deserialize_keras_object(config[key])
        return cls(**config)


def stages(model: keras.Model) -> list[MeanFieldStage]:
    """The mean-field stages of a model, nested ones too, from input to output.

    Args:
        model: A Keras model or layer.

    Returns:
        List of `MeanFieldStage`.

    Example:

    >>> [stage.num_particles for stage in stages(mf_zoo.applications.MFResNet20())]
    [3, 2, 2]
    """
    if isinstance(model, MeanFieldStage):
        return [model]
    # Level by level: Keras's own walk goes through the layers of nested models backwards.
    layers = model._flatten_layers(include_self=False, recursive=False)
    return list(dict.fromkeys(stage for layer in layers for stage in stages(layer)))
