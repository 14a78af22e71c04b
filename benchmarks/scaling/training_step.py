"""A training step at ImageNet's size on one device, beside what the device does at best."""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks import harness
from benchmarks.accelerator import OPERATIONS_PER_MULTIPLY_ADD

CLASSES = 1000  # of ImageNet


@dataclass(frozen=True)
class Step:
    """How fast one device trains a network: a row of the table and of the CSV file.

    Attributes:
        model: Name of the network.
        policy: Dtype policy.
        input_size: Pixels a side.
        parameters: Trained numbers; a gradient has as many, in float32.
        multiply_adds: For one image.
        activation_bytes: Kept for the backward pass, for one image.
        normalizations, channels: BatchNormalization layers, and their channels together.
        seconds: Of a step, the median.
        images_per_second: Batch over seconds.
        operations_per_second: Of convolutions and dense layers.
        matmul_operations, convolution_operations: Operations a second of the ceilings, the median.
        matmul_fraction, convolution_fraction: What the step reaches of each, the median of the
            rounds' fractions.
    """

    model: str
    policy: str
    input_size: int
    parameters: int
    multiply_adds: int
    activation_bytes: int
    normalizations: int
    channels: int
    seconds: float
    images_per_second: float
    operations_per_second: float
    matmul_operations: float
    matmul_fraction: float
    convolution_operations: float
    convolution_fraction: float


def figures(network: Any) -> dict[str, int]:
    """What is known of a network without measuring: fields of `Step`."""
    import keras

    from mf_zoo import applications
    from mf_zoo.layers import MeanFieldStage
    from mf_zoo.layers.residual_function import ResidualFunction
    from mf_zoo.training.dry_run import activation_bytes

    widths: list[int] = []

    def count(layer: Any, times: int = 1) -> None:
        if isinstance(layer, MeanFieldStage):
            count(layer.template(), layer.num_particles)
        elif isinstance(layer, ResidualFunction):
            for part in layer.chain():
                count(part, times)
        elif isinstance(layer, keras.layers.BatchNormalization):
            widths.extend([layer.gamma.shape[0]] * times)

    for layer in network.layers:
        count(layer)
    return {
        "parameters": sum(math.prod(weight.shape) for weight in network.trainable_weights),
        "multiply_adds": applications.multiply_adds(network),
        "activation_bytes": activation_bytes(network),
        "normalizations": len(widths),
        "channels": sum(widths),
    }


def build(model: str, input_size: int, policy: str) -> Any:
    """The network for images of ImageNet, ending in logits."""
    from mf_zoo import applications
    from mf_zoo.training.assembly import dtype_policy

    with dtype_policy(policy):
        return applications.get(model)(
            input_shape=(input_size, input_size, 3), classes=CLASSES, classifier_activation=None
        )


def ceilings(policy: str) -> dict[str, tuple[Callable[[], Any], float]]:
    """What a device does at best: a product of large matrices, and a wide 3x3 convolution.

    Args:
        policy: Dtype policy, in whose compute dtype they are.

    Returns:
        By name a function that does it and waits, and the number of its operations.
    """
    import keras
    from keras import ops

    from mf_zoo.devices import accelerator

    n, batch = (8192, 256) if accelerator() else (1024, 2)
    repeats = 10
    side = width = 128 if accelerator() else 64
    dtype = keras.dtype_policies.get(policy).compute_dtype

    def normal(*shape: int) -> Any:
        return ops.cast(keras.random.normal(shape, seed=0), dtype)

    a, b = normal(n, n), normal(n, n)
    images, kernel = normal(batch, side, side, width), normal(3, 3, width, width)

    def repeated(function: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> None:
            for _ in range(repeats):
                result = function()
            ops.convert_to_numpy(result[(0,) * len(result.shape)])  # waits for the device

        return run

    matmul = repeated(lambda: ops.matmul(a, b))
    convolution = repeated(lambda: ops.conv(images, kernel, padding="same"))
    return {
        "matmul": (matmul, 2 * repeats * n**3),
        "convolution": (convolution, 2 * repeats * batch * side**2 * 9 * width**2),
    }


def measure(model: str, policy: str, input_size: int, batch: int, rounds: int, steps: int) -> Step:
    """Measures the training step of one network, in turns with the ceilings."""
    from mf_zoo.optimizers import MeanFieldSGD

    network = build(model, input_size, policy)
    harness.compile_model(network, MeanFieldSGD(0.1, momentum=0.9, weight_decay=1e-4))
    images, labels = harness.images_and_labels(batch, input_size)
    found = figures(network)
    work = {"step": OPERATIONS_PER_MULTIPLY_ADD * found["multiply_adds"] * batch}
    sides = {"step": lambda: network.train_on_batch(images, labels)}
    for name, (function, operations) in ceilings(policy).items():
        sides[name], work[name] = function, operations
    harness.interleave(sides, 1, 1)  # compiles
    seconds = harness.interleave(sides, rounds, steps)
    rates = {name: [work[name] / value for value in seconds[name]] for name in sides}
    step = statistics.median(seconds["step"])
    return Step(
        model=model,
        policy=policy,
        input_size=input_size,
        **found,
        seconds=step,
        images_per_second=batch / step,
        operations_per_second=work["step"] / step,
        matmul_operations=statistics.median(rates["matmul"]),
        matmul_fraction=harness.ratio(rates["step"], rates["matmul"]).median,
        convolution_operations=statistics.median(rates["convolution"]),
        convolution_fraction=harness.ratio(rates["step"], rates["convolution"]).median,
    )
