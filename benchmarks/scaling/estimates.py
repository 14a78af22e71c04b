"""What a number of devices that share a batch would do, from what one of them does."""

import math
from dataclasses import dataclass

from benchmarks.scaling.all_reduce import all_reduce_seconds

IMAGES = 1_281_167  # of ImageNet


@dataclass(frozen=True)
class Estimate:
    """What a number of devices would do.

    Attributes:
        devices: Number of devices.
        batch: Images of a step, on all devices together.
        compute_seconds: Of a step, on one of them.
        gradient_seconds: Of averaging gradients, as far as nothing hides it.
        statistics_seconds: Of averaging the statistics of BatchNormalization.
        efficiency: Images a second over those of as many devices that need not talk.
    """

    devices: int
    batch: int
    compute_seconds: float
    gradient_seconds: float
    statistics_seconds: float

    @property
    def seconds(self) -> float:
        """Seconds of a step."""
        return self.compute_seconds + self.gradient_seconds + self.statistics_seconds

    @property
    def images_per_second(self) -> float:
        """Of all devices together."""
        return self.batch / self.seconds

    @property
    def efficiency(self) -> float:
        """Images a second, over those of as many devices that need not talk."""
        return self.compute_seconds / self.seconds

    def epoch_seconds(self, images: int = IMAGES) -> float:
        """Seconds of an epoch; the last batch takes as long as a full one."""
        return math.ceil(images / self.batch) * self.seconds


def estimate(
    images_per_second: float,
    devices: int,
    *,
    batch: int,
    parameters: int,
    bandwidth: float,
    latency: float,
    normalizations: int = 0,
    channels: int = 0,
    overlap: float = 0.0,
) -> Estimate:
    """Works out a training step on several devices that share a batch.

    `t(p) = compute + gradients + statistics`, where

    - `compute = batch / p / images_per_second`: a device is as fast as when it was measured, which
      is true of batches that are no smaller;
    - `gradients`: one all-reduce of 4 bytes for each parameter, less what is hidden behind the
      backward pass, which is two thirds of `compute`: `max(0, all_reduce - overlap * backward)`;
    - `statistics`: BatchNormalization over the whole batch needs two all-reduces a layer and step,
      forward (two sums for each channel) and backward (two more), each of 8 bytes a channel. What
      follows has to wait for them, so nothing hides them. Without normalizations, each device is
      normalised by its own part of the batch.

    Args:
        images_per_second: Of one device, measured.
        devices: Number `p` of devices.
        batch: Images of a step, on all devices together.
        parameters: Trained parameters.
        bandwidth, latency: Those of `all_reduce_seconds`.
        normalizations, channels: BatchNormalization layers that take the statistics of the whole
            batch, and their channels together.
        overlap: Which part of the backward pass can hide the averaging of gradients, from 0 to 1.

    Raises:
        ValueError: For numbers out of range.
    """
    positive = (images_per_second, devices, batch, parameters, bandwidth)
    if min(positive) <= 0 or min(latency, normalizations, channels) < 0 or not 0 <= overlap <= 1:
        raise ValueError(
            "Rates, counts and the bandwidth must be positive, the latency at least 0, and "
            f"`overlap` from 0 to 1. Received: images_per_second={images_per_second}, "
            f"devices={devices}, batch={batch}, parameters={parameters}, bandwidth={bandwidth}, "
            f"latency={latency}, normalizations={normalizations}, channels={channels}, "
            f"overlap={overlap}"
        )
    if batch % devices:
        raise ValueError(
            "`batch` must be divisible by the number of devices. "
            f"Received: batch={batch}, devices={devices}"
        )
    compute = batch / devices / images_per_second
    gradients = all_reduce_seconds(4 * parameters, devices, bandwidth, latency)
    # An all-reduce is linear in its bytes: those of all layers together, and the latency of each.
    waits = 2 * normalizations * all_reduce_seconds(0, devices, bandwidth, latency)
    return Estimate(
        devices=devices,
        batch=batch,
        compute_seconds=compute,
        gradient_seconds=max(0.0, gradients - overlap * 2 / 3 * compute),
        statistics_seconds=waits + all_reduce_seconds(2 * 8 * channels, devices, bandwidth, 0),
    )


@dataclass(frozen=True)
class Assumption:
    """Accelerators of which nothing was measured here.

    Attributes:
        name: What they are.
        peak: Operations a second of the data sheet.
        fractions: Which parts of it a training step is taken to reach.
        memory: Bytes of each.
        batch: Images on each device, at most.
        links: By number of devices, bandwidth in bytes a second and latency in seconds.
    """

    name: str
    peak: float
    fractions: tuple[float, ...]
    memory: float
    batch: int
    links: dict[int, tuple[float, float]]

    def batch_of(self, activation_bytes: float) -> int:
        """Images on each device, halved until what they keep leaves a quarter of the memory."""
        batch = self.batch
        while batch > 1 and batch * activation_bytes > 3 / 4 * self.memory:
            batch //= 2
        return batch


# NVIDIA's data sheets of H100 SXM (dense bfloat16; NVLink, 900 GB/s both ways together) and of DGX
# H100 (one adapter of 400 Gbit/s for each GPU). Fractions and latencies are guesses.
H100 = Assumption(
    name="H100 SXM",
    peak=989e12,
    fractions=(0.02, 0.1),
    memory=80e9,
    batch=128,
    links={1: (450e9, 0.0), 8: (450e9, 10e-6), 64: (50e9, 20e-6)},
)
# The training images of ImageNet are an archive of 138 GiB.
BYTES_OF_IMAGE = 138 * 2**30 / IMAGES
