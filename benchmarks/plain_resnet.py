"""He et al.'s CIFAR ResNet in plain Keras layers: what the mean-field networks are compared with.

It shares no code with `mf_zoo`, so the comparison sees everything that `mf_zoo` adds.
"""

from typing import Any

import keras
from keras import layers

MEAN = (125.307, 122.950, 113.865)
VARIANCE = (62.993**2, 62.089**2, 66.705**2)


def plain_resnet(depth: int, batch_normalization: type = layers.BatchNormalization) -> keras.Model:
    """Builds the network layer by layer, as one writes it by hand.

    Args:
        depth: 6n + 2: 8, 14, 20, ...
        batch_normalization: Layer class to use for BatchNormalization.

    Returns:
        A `keras.Model` from images `(batch, 32, 32, 3)`, 0..255, to logits `(batch, 10)`. The
        blocks are named `stage1_block0`, ...; those that change the shape `head2`, `head3`.

    Source: He, Zhang, Ren, Sun, *Deep Residual Learning for Image Recognition*, CVPR 2016,
    section 4.2, with projection shortcuts.
    """
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"`depth` must be 6n + 2 and at least 8. Received: depth={depth}")

    def convolution(x: Any, filters: int, name: str, size: int = 3, strides: int = 1) -> Any:
        padding = "same"
        if strides > 1 and size > 1:  # on all sides alike, as the paper's authors and PyTorch do
            x = layers.ZeroPadding2D(size // 2, name=f"{name}_pad")(x)
            padding = "valid"
        return layers.Conv2D(
            filters,
            size,
            strides=strides,
            padding=padding,
            use_bias=False,
            kernel_initializer="he_normal",
            name=name,
        )(x)

    def normalization(x: Any, name: str) -> Any:
        return batch_normalization(momentum=0.9, epsilon=1.001e-5, name=name)(x)

    def block(x: Any, filters: int, name: str, strides: int = 1) -> Any:
        shortcut = x
        if strides > 1:
            shortcut = convolution(x, filters, f"{name}_shortcut_conv", size=1, strides=strides)
            shortcut = normalization(shortcut, f"{name}_shortcut_bn")
        x = normalization(convolution(x, filters, f"{name}_conv1", strides=strides), f"{name}_bn1")
        x = layers.ReLU(name=f"{name}_relu1")(x)
        x = normalization(convolution(x, filters, f"{name}_conv2"), f"{name}_bn2")
        x = layers.Add(name=f"{name}_add")([shortcut, x])
        return layers.ReLU(name=f"{name}_relu2")(x)

    images = layers.Input((32, 32, 3), name="images")
    x = layers.Normalization(mean=MEAN, variance=VARIANCE, name="normalization")(images)
    x = normalization(convolution(x, 16, "stem_conv"), "stem_bn")
    x = layers.ReLU(name="stem_relu")(x)
    blocks = (depth - 2) // 6
    for number, filters in enumerate((16, 32, 64), start=1):
        if number > 1:
            x = block(x, filters, f"head{number}", strides=2)
        for index in range(blocks - (number > 1)):
            x = block(x, filters, f"stage{number}_block{index}")
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    x = layers.Dense(10, name="predictions")(x)
    x = layers.Activation(None, dtype="float32", name="scores")(x)
    return keras.Model(images, x, name=f"plain_resnet{depth}")
