"""Random crop, flip, cutout, mixup and CutMix of images."""

from typing import Any

import keras
import numpy as np
from keras import ops


def _namespace(images: Any, transformation: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """NumPy for a NumPy batch, `keras.ops` for a tensor, and the transformation to go with it.

    On the host NumPy takes under 1 ms for 128 images and leaves the backend's threads alone.
    """
    on_host = isinstance(images, np.ndarray)
    convert = np.asarray if on_host else ops.convert_to_tensor
    return np if on_host else ops, {key: convert(value) for key, value in transformation.items()}


def _box(rng: np.random.Generator, height: int, width: int, weight: float) -> np.ndarray:
    """CutMix's box: `[[top, bottom], [left, right]]`, with `1 - weight` of the pixels or fewer."""
    sides = np.array([height, width])
    # Halves of whole pixels, rounded down twice, as the authors do.
    halves = (sides * np.sqrt(1 - weight)).astype("int32") // 2
    centre = rng.integers(0, sides)
    return np.clip([centre - halves, centre + halves], 0, sides).T.astype("int32")


@keras.saving.register_keras_serializable(package="mf_zoo")
class Augmentation(keras.layers.Layer):
    """The usual augmentation of CIFAR training images, drawn anew for each image.

    An image is padded with zeros on all sides, cropped back to its size at a random position,
    mirrored left to right with probability 1/2, and, on request, loses a random square.
    `keras.layers.RandomCrop` crops the whole batch at one position, which augments a batch
    far less; here each image has its own.

    It works in two places, by one implementation. As a layer of a model it runs on the
    accelerator when called with `training=True` and passes images through otherwise. On the
    host, `mf_zoo.data.batches(..., augment=...)` draws the transformation with NumPy, so that a
    seed gives the same images on every backend.

    Mixup and CutMix mix labels too, which a layer of a model does not see: they take effect in
    `batches`, or where `mix` is called, not in `call`. With both, each batch draws one of the two
    with probability 1/2, as timm does.

    Args:
        padding: Width in pixels of the border of zeros before the crop; 0 is no crop.
        flip: Whether to mirror images with probability 1/2.
        cutout: Side in pixels of the square set to zero (DeVries and Taylor 2017), centred on
            any pixel of the image and clipped at its edges; 0 is none.
        mixup: `alpha` of the Beta distribution from which a batch's mixing weight is drawn
            (Zhang et al. 2018); 0 is no mixup.
        cutmix: `alpha` of the Beta distribution from which a batch's share of own pixels is drawn
            (Yun et al. 2019); 0 is no CutMix. One box a batch, as in the authors' code: its area is
            the rest, it is centred on any pixel and clipped at the image's edges, and labels are
            mixed by the pixels that it has then. Every batch has a box (the authors' training on
            CIFAR gives one to every other batch).
        alternating_flip: Whether an image that is mirrored in one epoch is not in the next (Jordan
            2024, section 3.6); whether it is in the first is drawn. So two epochs show both sides
            of every image. Without `flip` it means nothing. It takes effect in `batches`, which
            number images and epochs; called as a layer, such an augmentation raises an error.
        seed: Integer seed of the layer's own draws (in `call`); `None` is a random one.

    A saved model that has this layer loads after `mf_zoo.data` was imported after Keras, or
    `mf_zoo.data.Augmentation` was named.

    Input and output: images `(N, height, width, channels)` of any dtype; the dtype is kept.

    Raises:
        ValueError: If an argument is negative, or `padding` or `cutout` is no integer.

    Example:

    >>> augment = mf_zoo.data.Augmentation(padding=4, flip=True)
    >>> images, labels = mf_zoo.data.sample("cifar10")
    >>> tuple(augment(images, training=True).shape)
    (200, 32, 32, 3)

    References:
        - He et al., *Deep Residual Learning for Image Recognition*, 2016, section 4.2
          (arXiv 1512.03385)
        - DeVries and Taylor, *Improved Regularization of Convolutional Neural Networks with
          Cutout*, 2017 (arXiv 1708.04552)
        - Zhang et al., *mixup: Beyond Empirical Risk Minimization*, 2018 (arXiv 1710.09412)
        - Yun et al., *CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
          Features*, 2019 (arXiv 1905.04899)
        - Jordan, *94% on CIFAR-10 in 3.29 Seconds on a Single GPU*, 2024 (arXiv 2404.00498)
    """

    def __init__(
        self,
        padding: int = 4,
        flip: bool = True,
        cutout: int = 0,
        mixup: float = 0.0,
        seed: int | None = None,
        cutmix: float = 0.0,
        alternating_flip: bool = False,
        **kwargs: Any,
    ):
        # No autocast: under mixed precision it would round pixel values to bfloat16.
        super().__init__(**{"autocast": False, **kwargs})
        for label, value in (("padding", padding), ("cutout", cutout)):
            if not isinstance(value, int) or value < 0:
                raise ValueError(
                    f"`{label}` must be a non-negative integer of pixels. Received: {value!r}"
                )
        for label, value in (("mixup", mixup), ("cutmix", cutmix)):
            if not value >= 0:
                raise ValueError(f"`{label}` must be a non-negative number. Received: {value!r}")
        self.padding = padding
        self.flip = bool(flip)
        self.alternating_flip = bool(flip and alternating_flip)
        self.cutout = cutout
        self.mixup = float(mixup)
        self.cutmix = float(cutmix)
        self.seed = seed
        self.generator = keras.random.SeedGenerator(seed)

    @property
    def mixes(self) -> bool:
        """Whether images and labels are mixed, by mixup or CutMix."""
        return self.mixup > 0 or self.cutmix > 0

    def draw(
        self, rng: np.random.Generator, batch_size: int, image_shape: tuple[int, ...]
    ) -> dict[str, np.ndarray]:
        """Draw the transformation of a batch with NumPy.

        Args:
            rng: The generator to draw from.
            batch_size: Number of images.
            image_shape: `(height, width, channels)` or `(height, width)`.

        Returns:
            A dictionary of arrays, those of the parts that are on: `top` and `left` (the
            crop's corner in the padded image), `flip` (bool; where flips alternate, `batches` puts
            its own in its place), `cut_row` and `cut_column` (the square's centre), each `(N,)`;
            `partner` `(N,)` and `weight` `()`, the share of an image's own label, for mixup and
            CutMix; with CutMix on, `box` `(4,)`: top, bottom, left and right of the partner's
            pixels, an empty box where mixup was drawn instead.
        """
        height, width = image_shape[:2]
        transformation: dict[str, np.ndarray] = {}
        if self.padding:
            corners = rng.integers(0, 2 * self.padding + 1, (2, batch_size), dtype="int32")
            transformation |= {"top": corners[0], "left": corners[1]}
        if self.flip:
            transformation["flip"] = rng.random(batch_size) < 0.5
        if self.cutout:
            transformation["cut_row"] = rng.integers(0, height, batch_size, dtype="int32")
            transformation["cut_column"] = rng.integers(0, width, batch_size, dtype="int32")
        if self.mixes:
            transformation["partner"] = rng.permutation(batch_size).astype("int32")
            cuts = self.cutmix and (not self.mixup or rng.random() < 0.5)
            alpha = self.cutmix if cuts else self.mixup
            weight = rng.beta(alpha, alpha)
            if self.cutmix:
                box = _box(rng, height, width, weight) if cuts else np.zeros((2, 2), "int32")
                if cuts:
                    weight = 1 - np.prod(box[:, 1] - box[:, 0]) / (height * width)
                transformation["box"] = box.reshape(-1)
            transformation["weight"] = np.float32(weight)
        return transformation

    def get_random_transformation(
        self, images: Any, training: bool = True, seed: Any = None
    ) -> dict[str, Any] | None:
        """Draw the transformation of a batch with `keras.random`, as `call` does.

        Args:
            images: The batch, `(N, height, width, channels)`.
            training: If false there is no transformation.
            seed: A seed or `SeedGenerator`; `None` is the layer's own.

        Returns:
            What `draw` returns, as tensors and without what mixes; `None` if not training.
        """
        if not training:
            return None
        if self.alternating_flip:
            raise ValueError(
                "Flips alternate where images and epochs have numbers: in `mf_zoo.data.batches`. "
                "Received: a call of the layer with alternating_flip=True"
            )
        seed = self.generator if seed is None else seed
        count, height, width = ops.shape(images)[:3]

        def integers(bound):
            return keras.random.randint((count,), 0, bound, dtype="int32", seed=seed)

        transformation = {}
        if self.padding:
            transformation["top"] = integers(2 * self.padding + 1)
            transformation["left"] = integers(2 * self.padding + 1)
        if self.flip:
            transformation["flip"] = keras.random.uniform((count,), seed=seed) < 0.5
        if self.cutout:
            transformation |= {"cut_row": integers(height), "cut_column": integers(width)}
        return transformation

    def transform_images(
        self, images: Any, transformation: dict[str, Any] | None, training: bool = True
    ) -> Any:
        """Crop, flip and cut images as a transformation says (it does not mix them).

        Args:
            images: `(N, height, width, channels)`; a NumPy array or a tensor.
            transformation: What `draw` or `get_random_transformation` returned.
            training: If false the images are returned as they are.

        Returns:
            Images of the same shape and dtype; a NumPy array for a NumPy array.
        """
        if not training or not transformation:
            return images
        xp, transformation = _namespace(images, transformation)
        count, height, width, channels = xp.shape(images)
        if "top" in transformation or "flip" in transformation:
            border = self.padding if "top" in transformation else 0
            rows = xp.arange(height, dtype="int32")[None, :]
            columns = xp.arange(width, dtype="int32")[None, :]
            if "flip" in transformation:
                flip = transformation["flip"][:, None]
                columns = xp.where(flip, width - 1 - columns, columns)
            if border:
                images = xp.pad(images, ((0, 0), (border, border), (border, border), (0, 0)))
                rows = rows + transformation["top"][:, None]
                columns = columns + transformation["left"][:, None]
            # Pixel numbers in the padded batch, so that one gather crops and flips.
            full_height, full_width = height + 2 * border, width + 2 * border
            rows = rows + full_height * xp.arange(count, dtype="int32")[:, None]
            pixels = full_width * rows[:, :, None] + columns[:, None, :]
            images = xp.take(xp.reshape(images, (-1, channels)), pixels, axis=0)
        if "cut_row" in transformation:
            images = self._cut(xp, images, transformation, height, width)
        return images

    def _cut(self, xp: Any, images: Any, transformation: dict, height: int, width: int) -> Any:
        def inside(size, centre):
            # A square of even side reaches one pixel further up and left, as the authors' does.
            offset = xp.arange(size, dtype="int32")[None, :] - centre[:, None] + self.cutout // 2
            return (offset >= 0) & (offset < self.cutout)

        rows = inside(height, transformation["cut_row"])
        columns = inside(width, transformation["cut_column"])
        square = rows[:, :, None, None] & columns[:, None, :, None]
        return xp.where(square, xp.zeros_like(images), images)

    def mix(
        self, images: Any, labels: Any, transformation: dict[str, Any] | None
    ) -> tuple[Any, Any]:
        """Mix each image and its label with those of its partner.

        Args:
            images: `(N, height, width, channels)`; a NumPy array or a tensor.
            labels: One-hot or soft labels, float `(N, classes)`.
            transformation: What `draw` returned.

        Returns:
            `(images, labels)`, both `weight * own + (1 - weight) * partner's`, images in
            float32, or their own but for the partner's in a box that is not empty; unchanged if
            `transformation` does not mix.
        """
        if not transformation or "weight" not in transformation:
            return images, labels
        xp, transformation = _namespace(images, transformation)
        weight, partner = transformation["weight"], transformation["partner"]
        images = images.astype("float32") if xp is np else ops.cast(images, "float32")

        def mixed(values, weight):
            return weight * values + (1 - weight) * xp.take(values, partner, axis=0)

        share = weight
        if "box" in transformation:
            top, bottom, left, right = (transformation["box"][k] for k in range(4))
            rows = xp.arange(images.shape[1], dtype="int32")[:, None, None]
            columns = xp.arange(images.shape[2], dtype="int32")[None, :, None]
            inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
            # 0 and 1 for the pixels of a box, which makes the sum exact.
            own = 1 - (inside.astype("float32") if xp is np else ops.cast(inside, "float32"))
            share = xp.where((top < bottom) & (left < right), own, weight)
        return mixed(images, share), mixed(labels, weight)

    def call(self, images: Any, training: bool = False) -> Any:
        transformation = self.get_random_transformation(images, training=training)
        return self.transform_images(images, transformation, training=training)

    def compute_output_spec(self, images: Any, training: bool = False) -> keras.KerasTensor:
        return keras.KerasTensor(images.shape, dtype=images.dtype)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "padding": self.padding,
            "flip": self.flip,
            "cutout": self.cutout,
            "mixup": self.mixup,
            "cutmix": self.cutmix,
            "alternating_flip": self.alternating_flip,
            "seed": self.seed,
        }
