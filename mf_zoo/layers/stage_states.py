"""The states inside a stage as outputs of a layer."""

from collections.abc import Sequence
from typing import Any

import keras

from mf_zoo.layers.mean_field_stage import MeanFieldStage


@keras.saving.register_keras_serializable(package="mf_zoo")
class StageStates(keras.layers.Layer):
    """A stage that returns states on its way, too: what `mf_zoo.features` puts in its place.

    It is the same stage with the same weights: a call updates statistics and adds losses as the
    stage does.

    Args:
        stage: The `MeanFieldStage`, of `n` particles.
        positions: Which states: `0` is the input `X^0`, `l` the state `X^l` after the `l`-th block
            in depth order, from 1 to `n`.
        **kwargs: Keyword arguments of `keras.layers.Layer`; the dtype is that of the stage.

    Call arguments:
        inputs: As of the stage.
        training: As of the stage.

    Returns:
        List of tensors of the shape of the inputs, in the order of `positions`, in the stage's
        compute dtype.

    Raises:
        ValueError: For anything but a stage, or a state that it does not have.

    Example:

    >>> stage = MeanFieldStage(keras.layers.Dense(4), 3)
    >>> first, last = StageStates(stage, [1, 3])(np.ones((2, 4)))
    >>> bool(keras.ops.all(last == stage(np.ones((2, 4)))))
    True
    """

    def __init__(self, stage: MeanFieldStage, positions: Sequence[int], **kwargs: Any):
        if not isinstance(stage, MeanFieldStage):
            raise ValueError(f"`stage` must be a MeanFieldStage. Received: stage={stage!r}")
        super().__init__(**{"dtype": stage.dtype_policy, **kwargs})
        if not positions or not all(
            position in range(stage.num_particles + 1) for position in positions
        ):
            raise ValueError(
                f"`positions` must be numbers from 0 to {stage.num_particles}. "
                f"Received: positions={positions!r}"
            )
        self.stage = stage
        self.positions = [int(position) for position in positions]

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        if not self.stage.built:
            self.stage.build(input_shape)

    def call(self, inputs: Any, training: bool | None = None) -> list[Any]:
        states = self.stage(inputs, training=training, all_states=True)
        return [states[position] for position in self.positions]

    def compute_output_shape(
        self, input_shape: tuple[int | None, ...]
    ) -> list[tuple[int | None, ...]]:
        return [tuple(input_shape) for _ in self.positions]

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "stage": keras.saving.serialize_keras_object(self.stage),
            "positions": self.positions,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "StageStates":
        stage = keras.saving.deserialize_keras_object(config["stage"])
        return cls(**{**config, "stage": stage})
