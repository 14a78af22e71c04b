"""`python -m benchmarks.torch_step`: a training step on PyTorch against hand-written PyTorch.

`MFResNet20` as `mf-zoo train --recipe quick` compiles it, and the same network in `torch.nn` with
channels last, trained by `torch.optim.SGD` with the same loss, weight decay and images, with the
same weights to begin with. A third side, the network in Keras's own layers, tells what this
package's layers are worth. All sides in one process, measured in turn; the hand-written network
computes with `torch.autocast` where the policy is mixed.
"""

import sys
from typing import Any

from benchmarks import harness

MEAN_FIELD, PLAIN, WRITTEN = "mean-field", "plain Keras", "hand-written"
TARGET = 1 / 0.85  # of the hand-written step's time
DEPTH = 20
POLICIES = ("float32", "mixed_bfloat16")


def hand_written(depth: int) -> Any:
    """He et al.'s CIFAR ResNet in `torch.nn`, with random weights, parts named as torchvision's.

    Args:
        depth: 6n + 2.

    Returns:
        A module from normalised images `(batch, 3, 32, 32)` to logits `(batch, 10)`.
    """
    from torch import nn

    def convolution(channels: int, filters: int, size: int = 3, stride: int = 1) -> nn.Module:
        return nn.Conv2d(channels, filters, size, stride, size // 2, bias=False)

    def normalization(filters: int) -> nn.Module:
        return nn.BatchNorm2d(filters, eps=1.001e-5, momentum=0.1)

    class Block(nn.Module):
        def __init__(self, channels: int, filters: int):
            super().__init__()
            stride = 1 if channels == filters else 2
            self.conv1 = convolution(channels, filters, stride=stride)
            self.bn1 = normalization(filters)
            self.conv2 = convolution(filters, filters)
            self.bn2 = normalization(filters)
            self.relu = nn.ReLU(inplace=True)
            self.downsample = None
            if stride > 1:
                self.downsample = nn.Sequential(
                    convolution(channels, filters, 1, stride), normalization(filters)
                )

        def forward(self, x: Any) -> Any:
            shortcut = x if self.downsample is None else self.downsample(x)
            x = self.relu(self.bn1(self.conv1(x)))
            return self.relu(self.bn2(self.conv2(x)) + shortcut)

    class ResNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = convolution(3, 16)
            self.bn1 = normalization(16)
            self.relu = nn.ReLU(inplace=True)
            channels = 16
            for number, filters in enumerate((16, 32, 64), start=1):
                blocks = []
                for _ in range((depth - 2) // 6):
                    blocks.append(Block(channels, filters))
                    channels = filters
                setattr(self, f"layer{number}", nn.Sequential(*blocks))
            self.fc = nn.Linear(64, 10)

        def forward(self, x: Any) -> Any:
            x = self.relu(self.bn1(self.conv1(x)))
            x = self.layer3(self.layer2(self.layer1(x)))
            return self.fc(x.mean((2, 3)))

    return ResNet()


class HandWritten:
    """The hand-written network and its training, called as a compiled Keras model is.

    Args:
        depth: 6n + 2.
        recipe: A `mf_zoo.training.Recipe`.
        rate: Learning rate.
    """

    def __init__(self, depth: int, recipe: Any, rate: float):
        import torch

        from mf_zoo.applications.inputs import cifar10_normalization

        self.recipe = recipe
        self.module = hand_written(depth).to(memory_format=torch.channels_last)
        self.mean, self.std = (
            torch.tensor(values, dtype=torch.float32)[:, None, None]
            for values in cifar10_normalization()
        )
        parameters = list(self.module.parameters())
        groups = [
            {
                "params": [p for p in parameters if (p.ndim > 1) == decays],
                "weight_decay": recipe.weight_decay if decays else 0.0,
            }
            for decays in (True, False)
        ]
        self.optimizer = torch.optim.SGD(
            groups, rate, momentum=recipe.momentum, nesterov=recipe.nesterov
        )

    def _scores(self, images: Any) -> Any:
        import torch

        # A view: channels last, as the images come.
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float()
        x = (x - self.mean) / self.std
        mixed = self.recipe.dtype_policy == "mixed_bfloat16"
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            return self.module(x).float()

    def train_on_batch(self, images: Any, labels: Any) -> tuple[float, float]:
        """A step; returns the loss and the accuracy before it."""
        import torch

        self.module.train()
        self.optimizer.zero_grad()
        scores, targets = self._scores(images), torch.from_numpy(labels)
        loss = torch.nn.functional.cross_entropy(
            scores, targets, label_smoothing=self.recipe.label_smoothing
        )
        loss.backward()
        self.optimizer.step()
        return loss.item(), (scores.argmax(1) == targets).float().mean().item()

    def predict_on_batch(self, images: Any) -> Any:
        """The logits of a batch as an array."""
        import torch

        self.module.eval()
        with torch.no_grad():
            return self._scores(images).numpy()


def networks(depth: int, policy: str) -> dict[str, Any]:
    """All sides, the same network with the same weights, ready to be trained."""
    from benchmarks.plain_resnet import plain_resnet
    from benchmarks.train_step import copy_weights
    from mf_zoo import convert
    from mf_zoo.training import assembly, get_recipe

    recipe = get_recipe("quick", dtype_policy=policy)
    rate = recipe.learning_rate / 25  # where its cycle begins
    with assembly.dtype_policy(policy):
        written = HandWritten(depth, recipe, rate)
        ours = assembly.build_network(f"MFResNet{depth}", recipe, 10)
        plain = plain_resnet(depth)
    convert.from_torch(written.module.state_dict(), ours)
    copy_weights(ours, plain)
    assembly.compile_network(ours, recipe, rate, seed=0)
    assembly.compile_network(plain, recipe, rate, seed=0)
    return {MEAN_FIELD: ours, PLAIN: plain, WRITTEN: written}


def check_equal(models: dict[str, Any], images: Any, tolerance: float) -> None:
    """Raises AssertionError unless all sides give the same scores."""
    import numpy as np

    expected = models[WRITTEN].predict_on_batch(images)
    for name, model in models.items():
        np.testing.assert_allclose(
            model.predict_on_batch(images),
            expected,
            rtol=0,
            atol=tolerance * np.abs(expected).max(),
            err_msg=f"{name} and {WRITTEN} give different outputs",
        )


def measure(
    policies: list[str], batch: int, rounds: int, steps: int, clock: str = "wall"
) -> list[harness.Comparison]:
    """Measures a training step of all sides under all policies, in turn."""
    images, labels = harness.images_and_labels(batch)
    rows = []
    for policy in policies:
        models = networks(DEPTH, policy)
        check_equal(models, images, 1e-3 if policy == "float32" else 5e-2)
        sides = {
            name: lambda model=model: model.train_on_batch(images, labels)
            for name, model in models.items()
        }
        harness.say(f"training steps in {policy}")
        harness.interleave(sides, 1, 2)
        seconds = harness.interleave(sides, rounds, steps, harness.CLOCKS[clock])
        rows += [
            harness.compare(
                seconds,
                side,
                WRITTEN,
                depth=DEPTH,
                measure="train",
                policy=policy,
                target=TARGET if side == MEAN_FIELD else None,
            )
            for side in (MEAN_FIELD, PLAIN)
        ]
    return rows


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    harness.quiet()
    parser = harness.parser("A training step on PyTorch against hand-written PyTorch.", 7, 3)
    harness.add_clock(parser)
    parser.add_argument("--policies", nargs="+", default=list(POLICIES), choices=POLICIES)
    options = parser.parse_args(arguments)

    import keras

    if keras.config.backend() != "torch":
        raise SystemExit(
            "This benchmark needs the PyTorch backend: set KERAS_BACKEND=torch. "
            f"Received: {keras.config.backend()}"
        )
    harness.limit_threads(options.threads)
    keras.utils.set_random_seed(0)
    shared = harness.circumstances(options.batch, options.threads) | {"clock": options.clock}
    output = options.output or harness.RESULTS / "torch_step.csv"
    rows = measure(options.policies, options.batch, options.rounds, options.steps, options.clock)
    harness.report(rows, shared, output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
