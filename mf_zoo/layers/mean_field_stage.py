"""A stage of residual blocks that are particles, applied in the order of their times."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from mf_zoo.layers import integrators, rematerialization
from mf_zoo.layers import quadrature as quadrature_rules
from mf_zoo.layers.flags import set_trainable_parts, trainable_parts
from mf_zoo.layers.particles import Block, ParticleInfo, PerParticle, Reflect


class _Template:
    """One copy of the residual function, hidden from Keras's tracking of sublayers.

    Its variables hold no weights: in a call each is given one particle's value. Their flags
    `trainable` are those of the stage's weights, which follow.
    """

    def __init__(self, layer: keras.layers.Layer, flags: list[bool]):
        self.layer = layer
        self.flags = flags  # of its variables, when the weights last followed
        self.variables = layer.variables
        # The stage's own weights carry the regularizers; the block's must not count twice.
        for variable in self.variables:
            variable.regularizer = None
        self.takes_training = "training" in inspect.signature(layer.call).parameters


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
            its own initial weights and seeds. Parts of it that are frozen are frozen in all
            copies. A block whose dtype policy is Keras's global one
            (`keras.config.dtype_policy()`), as that of a block made without `dtype` is, gets the
            stage's policy; any other policy is the block's own. A block whose output is linear in
            some of its variables (a last scale and shift) may name them in a property
            `output_scale_variables`; the step size is then folded into them, at no cost.
        num_particles: Number `n` of blocks.
        quadrature: `"backward"` (the paper's), `"midpoint"`, `"uniform"`,
            `"uniform_straight_through"`, or a rule of your own, by the name that
            `mf_zoo.layers.register_rule` gave it or as an object: see
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
        remat: What is computed again in the backward pass instead of being kept (`keras.remat`).
            `True`: the activations within a block; of each block its input is kept, for about one
            more forward pass a step. An integer `k`: the inputs of the blocks as well; every
            `k`-th is kept, and from it those of the `k` blocks that follow are computed again, then
            what is within each, for about two more forward passes. `"sqrt"`: the `k` for which the
            inputs of this stage that live at a time are fewest, the root of `n`. (While another
            stage is derived only the kept ones of this live: a larger `k` may be better.) `False`:
            nothing. Results are the same; what a block draws at random, too. (On JAX's CPU nothing
            is saved unless `unroll=False`: XLA merges the second computation of an unrolled loop
            with the first there.)
        integrator: How a step is made: `"euler"`, the formula above, `"midpoint"` or `"heun"`,
            which are of order 2 in the steps and evaluate each block twice, or one of your own, by
            the name that `mf_zoo.layers.register_integrator` gave it or as an object: see
            `mf_zoo.layers.Integrator`. The activation is applied to every state that a block sees.
            A block that is evaluated twice in a step updates its statistics twice and draws at
            random anew each time; of losses that it adds the mean over its evaluations counts.
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
    >>> keras.ops.shape(stage(keras.ops.ones((2, 8, 8, 16))))
    (2, 8, 8, 16)
    >>> [(block.particle, block.step) for block in stage.blocks()]
    [(0, 1.0), (1, 1.0), (2, 1.0)]
    """

    _template: _Template | None = None  # until it is built

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
        remat: bool | int | str = False,
        integrator: Any = "euler",
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
        self._describe(block, gets_policy=block.dtype_policy == keras.config.dtype_policy())
        self.num_particles = num_particles
        self.quadrature = quadrature_rules.get(quadrature)
        self.horizon = float(num_particles if horizon is None else horizon)
        self.initial_times = self._check_initial_times(initial_times)
        self.train_times = bool(train_times)
        self.activation = keras.activations.get(activation)
        self.unroll = bool(unroll)
        self.seed = seed
        self.reorder = bool(reorder)
        self.remat = rematerialization.check(remat)
        self.integrator = integrators.get(integrator)
        # Of the block, part by part: its configuration may say nothing of its parts.
        self._given_flags = trainable_parts(block)
        self._flags: list[bool] | None = None  # what counts instead, until it is built

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

    def _describe(self, block: keras.layers.Layer, gets_policy: bool) -> None:
        """Keeps a block as a description: as an attribute, it would be tracked as a part."""
        before = keras.saving.serialize_keras_object(block.dtype_policy)
        after = keras.saving.serialize_keras_object(self.dtype_policy)

        def with_policy(config: Any) -> Any:
            if isinstance(config, dict):
                if config == before:
                    return dict(after)
                return {key: with_policy(value) for key, value in config.items()}
            if isinstance(config, (list, tuple)):
                return type(config)(with_policy(value) for value in config)
            return config

        described = [block.get_config(), keras.saving.serialize_keras_object(block)]
        if gets_policy and before != after:
            described = with_policy(described)
        self._block_class = type(block)
        self._block_config, self._serialized_block = described

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
        template = copies[0]
        flags = self._given_flags if self._flags is None else self._flags
        complete = set_trainable_parts(template, flags)
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

        if not complete:  # a block that makes parts when it is built
            set_trainable_parts(template, flags)
        flags = trainable_parts(template)
        # Weights are made as if nothing were frozen: Keras lists those that can be trained first,
        # and their order must not depend on what is frozen at the time.
        set_trainable_parts(template, [True] * len(flags))
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
        self._template = _Template(template, [weight.trainable for weight in self._stacked])
        set_trainable_parts(template, flags)
        if not self.trainable and self._flags is None:
            template.trainable = False
        self._follow_template()

    def _follow_template(self) -> None:
        """Freezes and thaws the weights whose variable of the template was frozen or thawed."""
        template = self._template
        if template is None:
            return
        flags = [variable.trainable for variable in template.variables]
        for weight, old, new in zip(self._stacked, template.flags, flags, strict=True):
            if new != old:
                weight.trainable = new
        template.flags = flags

    @property
    def trainable(self) -> bool:
        """Whether the stage is trained; setting it sets it for all parts of its blocks too."""
        return self._trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        keras.layers.Layer.trainable.fset(self, value)
        if self._template is not None:
            self._template.layer.trainable = bool(value)
        else:
            self._flags = [True] * len(self._given_flags) if value else None

    @property
    def variables(self) -> list[Any]:
        self._follow_template()
        return super().variables

    @property
    def weights(self) -> list[Any]:
        self._follow_template()
        return super().weights

    def _times_initializer(self) -> Any:
        if self.initial_times == "random":
            return keras.initializers.RandomUniform(0.0, self.horizon, seed=self.seed)
        if self.initial_times == "grid":
            times = quadrature_rules.grid(self.quadrature, self.num_particles, self.horizon)
        else:
            times = np.asarray(self.initial_times)
        return lambda shape, dtype=None: ops.convert_to_tensor(times.astype("float64"), dtype)

    def template(self) -> keras.layers.Layer:
        """The residual function as a layer without weights of its own: what particles share.

        Its variables have the names, shapes and flags of a particle's, not the values. A part of it
        that is frozen, `stage.template().bn1.trainable = False`, is frozen in all blocks. (No
        attribute, for Keras would save it with the stage.)

        Returns:
            The layer, of a stage that has been built.
        """
        return self._template.layer

    def blocks(self) -> list[Block]:
        """The blocks of a stage that has been built, copied to NumPy.

        Returns:
            A `Block` for each particle, in depth order.

        Example:

        >>> stage = MeanFieldStage(BasicBlock(4), 2, initial_times=[2.0, 0.5])
        >>> stage.build((None, 8, 8, 4))
        >>> [(block.particle, block.time, block.step) for block in stage.blocks()]
        [(1, 0.5, 0.5), (0, 2.0, 1.5)]
        """
        order, steps = (ops.convert_to_numpy(part) for part in self._schedule())
        times = ops.convert_to_numpy(self.times)
        values = [np.array(ops.convert_to_numpy(weight)) for weight in self._stacked]
        return [
            Block(
                particle=int(particle),
                time=float(times[particle]),
                step=float(step),
                weights=[value[particle] for value in values],
            )
            for particle, step in zip(order, steps, strict=True)
        ]

    def set_blocks(
        self, weights: Sequence[Sequence[np.ndarray]], steps: Sequence[float] | None = None
    ) -> None:
        """Sets the weights of all blocks, the inverse of `blocks`. The times stay as they are.

        Args:
            weights: For each block, in depth order, the arrays that `Block.weights` lists.
            steps: With them the block at depth `l` adds `steps[l] f(x)`, whatever its own step:
                see `weights_for_steps`. `None` to take the weights as they are.

        Raises:
            ValueError: If the weights do not fit, or a block cannot take up its step. Then nothing
                is changed.

        Example:

        >>> stage = MeanFieldStage(BasicBlock(4), 2)
        >>> stage.build((None, 8, 8, 4))
        >>> stage.set_blocks([block.weights for block in reversed(stage.blocks())])
        """
        if steps is not None:
            weights = self.weights_for_steps(weights, steps)
        self._check_weights(weights)
        position = np.argsort(ops.convert_to_numpy(self.depth_order()))
        for weight, *parts in zip(self._stacked, *weights, strict=True):
            weight.assign(np.stack(parts)[position])

    def weights_for_steps(
        self, weights: Sequence[Sequence[np.ndarray]], steps: Sequence[float]
    ) -> list[list[np.ndarray]]:
        """Weights with which the block at depth `l`, at its own step, adds `steps[l] f(x)`.

        The change of the step goes into the variables that the block names in
        `output_scale_variables`.

        Args:
            weights: For each block, in depth order, the arrays that `Block.weights` lists.
            steps: The factors of the residual functions, in depth order.

        Returns:
            The weights, for `set_blocks`.

        Raises:
            ValueError: If the weights do not fit, a step of the stage is not positive, or steps
                change and the block names no variables.
        """
        self._check_weights(weights)
        own = ops.convert_to_numpy(self.step_sizes()).astype("float64")
        wanted = np.asarray(steps, "float64")
        if np.any((own <= 0) & (own != wanted)):
            raise ValueError(
                "Every block must have a positive step to compute what it is to compute. "
                f"Received: step sizes {own.tolist()} in stage {self.name!r}"
            )
        factors = np.divide(wanted, own, out=np.ones_like(own), where=own != wanted)
        if not self._folded and not np.allclose(factors, 1, rtol=0, atol=1e-6):
            raise ValueError(
                "Step sizes can only change where the residual function names the variables that "
                "scale its output, in a property `output_scale_variables`: nothing else can take "
                f"up the change. Received: {self._block_class.__name__} without it in stage "
                f"{self.name!r}, whose steps would change by the factors "
                f"{factors.round(4).tolist()}"
            )
        return [
            [
                (value * factor).astype(value.dtype) if k in self._folded else value
                for k, value in enumerate(parts)
            ]
            for parts, factor in zip(weights, factors, strict=True)
        ]

    def _check_weights(
        self, weights: Sequence[Sequence[np.ndarray]], count: int | None = None
    ) -> None:
        count = self.num_particles if count is None else count
        expected = [tuple(variable.shape) for variable in self._template.variables]
        found = [[np.shape(array) for array in parts] for parts in weights]
        if found != [expected] * count:
            raise ValueError(
                f"`weights` must list the arrays of {count} blocks, of the shapes "
                f"{expected} each. Received: shapes {found}"
            )

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
        steps = self.quadrature(_sorted(times, order), self.horizon)
        if not self.reorder:
            order = ops.arange(self.num_particles, dtype="int32")
        return order, steps

    def states(self, inputs: Any, training: bool = False) -> list[Any]:
        """All states of a stage, `[X^0, X^1, ..., X^n]`.

        No variable changes: statistics and states of seeds are as before, in training mode too.
        Losses that blocks add are dropped.

        Args:
            inputs: As in a call; `X^0`.
            training: Whether blocks run in training mode.

        Returns:
            List of `n + 1` tensors of the shape of `inputs`, in depth order, in the stage's compute
            dtype. The last one is what a call returns.

        Example:

        >>> stage = MeanFieldStage(BasicBlock(4), 2, activation="relu")
        >>> states = stage.states(keras.ops.ones((1, 8, 8, 4)))
        >>> len(states), keras.ops.shape(states[-1])
        (3, (1, 8, 8, 4))
        """
        inputs = self._prepared(inputs)
        with keras.StatelessScope(self._current()):
            return self(inputs, training=training, all_states=True)

    def update(self, inputs: Any, position: int, training: bool = False) -> Any:
        """What one block adds to a state, `dt_l f(X, theta_l)`, before the activation.

        No variable changes: statistics and states of seeds are as before, in training mode too.
        Losses that the block adds are dropped.

        Args:
            inputs: A state `X`, as the inputs of a call; it need not be the one that the block sees
                in the stage.
            position: Which block: `l`, from 0, in depth order.
            training: Whether the block runs in training mode.

        Returns:
            Tensor of the shape of `inputs`, in the stage's compute dtype.

        Example:

        >>> stage = MeanFieldStage(BasicBlock(4), 2)
        >>> x = keras.ops.ones((1, 8, 8, 4))
        >>> first = x + stage.update(x, 0)
        >>> bool(keras.ops.all(first + stage.update(first, 1) == stage(x)))
        True
        """
        inputs = self._prepared(inputs)
        if not 0 <= position < self.num_particles:
            raise ValueError(
                f"`position` must be that of a block, from 0 to {self.num_particles - 1}. "
                f"Received: position={position!r}"
            )
        with keras.StatelessScope(self._current()):
            order, steps = self._schedule()
            values = [value[position] for value in self._scaled_values(order, steps)]
            arguments = self._block_arguments(training)
            update, _, _ = self._updater(values, steps[position], arguments)
            return update(inputs)

    def _prepared(self, inputs: Any) -> Any:
        """The inputs of a method as those of a call, of a stage that then is built."""
        inputs = ops.cast(ops.convert_to_tensor(inputs), self.compute_dtype)
        if not self.built:
            self.build((None, *ops.shape(inputs)[1:]))
        return inputs

    def _current(self) -> list[tuple[Any, Any]]:
        """All variables with their values, for a scope in which none changes."""
        return [(variable, variable.value) for variable in self.variables]

    def _block_arguments(self, training: bool | None) -> dict[str, Any]:
        # Explicitly: a direct `call`, as in `stateless_call`, leaves no call context behind.
        return {"training": training} if self._template.takes_training else {}

    def _scaled_values(self, order: Any, steps: Any) -> list[Any]:
        """The weights in depth order, with the steps in those that scale a block's output."""
        values = [_sorted(weight.value, order) for weight in self._stacked]
        for k in self._folded:
            shape = (self.num_particles,) + (1,) * (len(values[k].shape) - 1)
            values[k] = values[k] * ops.cast(ops.reshape(steps, shape), values[k].dtype)
        return values

    def call(self, inputs: Any, training: bool | None = None, all_states: bool = False) -> Any:
        order, steps = self._schedule()
        values = self._scaled_values(order, steps)
        arguments = self._block_arguments(training)
        loop = self._unrolled if self.unroll else self._scanned
        outputs, states, losses = loop(inputs, values, steps, arguments, all_states)
        for loss in losses:
            self.add_loss(loss)
        if states:
            position = ops.argsort(order)
            for k, state in states.items():
                self._stacked[k].assign(_take(state, position))
        return outputs

    def _step(
        self, x: Any, values: Sequence[Any], step: Any, arguments: dict[str, Any]
    ) -> tuple[Any, dict[int, Any], list[Any]]:
        """One block: its output, its new state by weight index, and the losses it added."""

        def step_of(x: Any, values: Sequence[Any], step: Any) -> Any:
            return self._block_step(x, values, step, arguments)

        if self.remat:
            step_of = rematerialization.rematerialized(step_of)
        return step_of(x, list(values), step)

    def _block_step(
        self, x: Any, values: Sequence[Any], step: Any, arguments: dict[str, Any]
    ) -> tuple[Any, dict[int, Any], list[Any]]:
        update, states, added = self._updater(values, step, arguments)
        x = self.integrator(x, update, self.activation)
        losses = [loss for part in added for loss in part]
        if len(added) > 1:  # a penalty weighs the same, however often its block is evaluated
            losses = [loss / len(added) for loss in losses]
        return x, states, losses

    def _updater(
        self, values: Sequence[Any], step: Any, arguments: dict[str, Any]
    ) -> tuple[Callable[[Any], Any], dict[int, Any], list[list[Any]]]:
        """`dt f(x)` of one block as a function of `x`, with what it leaves behind.

        That is its new state by weight index and, for each evaluation, the losses it added.
        """
        layer, variables = self.template(), self._template.variables
        current = list(values)
        states: dict[int, Any] = {}
        added: list[list[Any]] = []

        def update(x: Any) -> Any:
            """`dt f(x)`, from the state in which the evaluation before has left the block."""
            mapping = list(zip(variables, current, strict=True))
            with keras.StatelessScope(mapping, collect_losses=True) as scope:
                before = [scope.get_current_value(variable) for variable in variables]
                y = layer(x, **arguments)
                after = [scope.get_current_value(variable) for variable in variables]
            for k, (old, new) in enumerate(zip(before, after, strict=True)):
                if new is not old:
                    states[k] = current[k] = new
            added.append(scope.losses)
            if not self._folded:
                y = y * ops.cast(step, y.dtype)
            return ops.cast(y, x.dtype)  # of a block that has a policy of its own

        return update, states, added

    def _unrolled(
        self,
        x: Any,
        values: list[Any],
        steps: Any,
        arguments: dict[str, Any],
        all_states: bool,
    ) -> tuple[Any, dict[int, Any], list[Any]]:
        n = self.num_particles
        # One split: its gradient is one concatenation, that of n slices a sum of n padded arrays.
        parts = list(zip(*(ops.unstack(value, n) for value in values), strict=True))
        parts = [list(part) for part in parts] or [[]] * n
        blocks = list(zip(parts, ops.unstack(steps, n), strict=True))

        def segment(x: Any, blocks: list[tuple[Any, Any]]) -> tuple[Any, list, list, list]:
            xs, changes, losses = [], [], []
            for part, step in blocks:
                x, state, added = self._step(x, part, step, arguments)
                changes.append(state)
                losses += added
                if all_states:
                    xs.append(x)
            return x, xs, changes, losses

        xs, changes, losses = [x], [], []
        for length in self._segments():
            again = self.remat and length > 1
            run = rematerialization.rematerialized(segment) if again else segment
            x, *found = run(x, blocks[:length])
            blocks = blocks[length:]
            for whole, part in zip((xs, changes, losses), found, strict=True):
                whole += part
        states = {k: ops.stack([state[k] for state in changes]) for k in changes[0]}
        return xs if all_states else x, states, losses

    def _scanned(
        self,
        x: Any,
        values: list[Any],
        steps: Any,
        arguments: dict[str, Any],
        all_states: bool,
    ) -> tuple[Any, dict[int, Any], list[Any]]:
        changed: list[int] = []

        def body(carry: Any, particle: Any) -> tuple[Any, Any]:
            part, step = particle
            y, states, losses = self._step(carry, part, step, arguments)
            changed[:] = states
            total = ops.cast(sum(losses), "float32") if losses else ops.zeros(())
            return y, [[y] if all_states else [], total, *states.values()]

        def segment(x: Any, particles: Any) -> tuple[Any, Any]:
            return ops.scan(body, x, particles)

        lengths = self._segments()
        if not self.remat or lengths[0] == 1:
            y, outputs = segment(x, (values, steps))
        else:
            y, outputs = rematerialization.scanned(segment, x, (values, steps), lengths)
        xs, total, *states = outputs
        outputs = [x, *ops.unstack(xs[0], self.num_particles)] if all_states else y
        return outputs, dict(zip(changed, states, strict=True)), [ops.sum(total)]

    def _segments(self) -> list[int]:
        """How many blocks lie between two states that are kept; without `remat` all are one."""
        n = self.num_particles
        return rematerialization.segments(self.remat or n, n)

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
        config = {
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
            "integrator": integrators.serialize(self.integrator),
        }
        if self._template is not None:
            flags = trainable_parts(self._template.layer)
        elif self._flags is not None:
            flags = list(self._flags)
        else:
            flags = [flag and self.trainable for flag in self._given_flags]
        as_given = all(self._given_flags) or not self.trainable
        if not as_given or flags != [self.trainable] * len(flags):
            config["trainable_parts"] = flags
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "MeanFieldStage":
        """Makes the stage; `"trainable_parts"` says which parts of its blocks are not frozen."""
        config = dict(config)
        flags = config.pop("trainable_parts", None)
        for key in ("block", "quadrature", "integrator"):
            if isinstance(config.get(key), dict):
                config[key] = keras.saving.deserialize_keras_object(config[key])
        stage = cls(**config)
        stage._flags = flags
        # It has got its policy already, whatever the global one is by now.
        stage._describe(config["block"], gets_policy=False)
        return stage


def _sorted(value: Any, order: Any) -> Any:
    """The entries of a weight in depth order, with a dense gradient.

    On TensorFlow the gradient of `take` is an `IndexedSlices`, which optimizers that scale or add
    gradients refuse; that of a reshape is dense. It costs nothing: to the same shape it copies
    nothing forward, and every entry is taken once, so backward there is as much to write as before.
    """
    return _take(ops.reshape(value, value.shape), order)


def _take(value: Any, order: Any) -> Any:
    """The entries of `value` in an order that counts from the start."""
    if keras.config.backend() == "tensorflow":
        # Keras's own makes seven more operations of each, for indices that count from the end:
        # 376 of the 2913 in a training step of MFResNet20, each of which is traced.
        import tensorflow as tf

        return tf.gather(value, order)
    return ops.take(value, order, axis=0)


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
