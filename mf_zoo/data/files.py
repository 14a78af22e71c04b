"""Image files of any kind, made fit for a network."""

import contextlib
import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mf_zoo.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

RESIZE = ("crop", "pad", "stretch")

# Not all that Pillow knows: it runs an external program for PostScript, and opens scientific
# formats such as HDF5, the weight files among them, without being able to read them.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")

_LONGEST = 65_535  # pixels of a side; no JPEG has more
_SMALL = 8  # pixels of a side below which hardly anything can be told


class SmallImageWarning(UserWarning):
    """An image has so few pixels that its class can hardly be told."""


class ImageFileError(UserError, ValueError):
    """A file is missing or cannot be read as an image."""


def image_files(paths: Iterable[str | os.PathLike]) -> list[Path]:
    """Lists image files: files as they are named, folders with all images below them.

    Args:
        paths: Files and folders.

    Returns:
        The files, those of a folder sorted by path; in a folder only names that end as those of
        image files do (`.png`, `.jpg`, `.webp` ...).

    Raises:
        ImageFileError: For a path that does not exist, or a folder without images.
    """
    from PIL import Image

    suffixes = {
        suffix for suffix, kind in Image.registered_extensions().items() if kind in _FORMATS
    }
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(
                file
                for file in path.rglob("*")
                if file.suffix.lower() in suffixes and file.is_file()
            )
            if not inside:
                raise ImageFileError(f"A folder must hold image files. Received: {path}")
            found += inside
        elif path.exists():
            _check_ordinary(path)
            found.append(path)
        else:
            raise ImageFileError(f"An image file must exist. Received: {path}")
    return found


def read_image(
    path: str | os.PathLike,
    size: tuple[int, int] = (32, 32),
    resize: str = "crop",
    channels: int = 3,
) -> np.ndarray:
    """Reads an image file for a network of the zoo.

    AVIF (where Pillow has it), BMP, GIF, JPEG, JPEG 2000, PNG, PPM, TIFF or WebP, whatever the
    file's name; of several frames the first. The orientation that a camera noted is undone,
    transparent parts are laid on white, greys, palettes, CMYK and 16-bit greys become RGB. An
    image of the wanted size stays as it is, to the bit; others are scaled with Pillow's
    antialiased bicubic filter. Of an image that is less than 8 pixels high or wide, and is to be
    enlarged, a `SmallImageWarning` says so.

    Args:
        path: The file.
        size: `(rows, cols)` in pixels.
        resize: How other proportions are met: `"crop"` scales the image to cover `size` and cuts
            the middle out, `"pad"` scales it to fit inside and adds black bars, `"stretch"`
            changes the proportions.
        channels: 3 for RGB, 1 for greys.

    Returns:
        uint8 `(rows, cols, channels)`.

    Raises:
        ImageFileError: The file cannot be read as an image, is no ordinary file, has more pixels
            than Pillow takes for harmless (`PIL.Image.MAX_IMAGE_PIXELS`) or a side of more than
            65,535, or pixels without a defined white, as those of a floating-point TIFF.
        ValueError: For an unknown `resize`, or another number of channels.

    Example:

    >>> from PIL import Image
    >>> Image.fromarray(mf_zoo.data.sample("cifar10")[0][0]).resize((640, 480)).save("cat.jpg")
    >>> mf_zoo.data.read_image("cat.jpg").shape
    (32, 32, 3)
    """
    if resize not in RESIZE:
        raise ValueError(f"`resize` must be one of {RESIZE}. Received: resize={resize!r}")
    with open_image(path, channels, size) as image:
        width, height = image.size
        if min(width, height) < min(_SMALL, *size):
            warnings.warn(
                f"An image should be {_SMALL} pixels high and wide at least, to show what it is "
                f"of. Received: {path}: {height} x {width} pixels",
                SmallImageWarning,
                stacklevel=2,
            )
        with _readable(path):
            return fitted(image, size, resize).reshape(*size, channels)


def open_image(file: Any, channels: int = 3, size: tuple[int, int] | None = None) -> "Image.Image":
    """Reads an image file, upright and in RGB or greys, at any size.

    Args:
        file: Its path, or the file opened in binary mode.
        channels: 3 for RGB, 1 for greys.
        size: `(rows, cols)` to which the image is to be scaled: a JPEG decoder can scale down by
            itself, to no less than four times that.

    Raises:
        ImageFileError, ValueError: See `read_image`.
    """
    from PIL import Image, ImageOps

    if channels not in (1, 3):
        raise ValueError(f"`channels` must be 1 or 3. Received: channels={channels!r}")
    if isinstance(file, (str, os.PathLike)):
        _check_ordinary(Path(file))
    Image.init()
    formats = [kind for kind in _FORMATS if kind in Image.OPEN]
    with _readable(file), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metadata that are not used
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(file, formats=formats) as opened:
            if max(opened.size) > _LONGEST:
                raise ValueError(f"{opened.width} x {opened.height} pixels, a side over {_LONGEST}")
            if size is not None:
                # A third of the time for a photograph of 12 million pixels, and values that differ
                # by 1 of 255.
                opened.draft("RGB", (4 * size[1], 4 * size[0]))
            image = _rgb(ImageOps.exif_transpose(opened))
            return image.convert("L") if channels == 1 else image


def _check_ordinary(path: Path) -> None:
    """Refuses what is there but no file, such as a pipe, from which reading might never end."""
    if path.exists() and not path.is_file():
        raise ImageFileError(f"An image must be an ordinary file. Received: {path}")


@contextlib.contextmanager
def _readable(file: Any) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of damaged files Pillow raises many kinds
        name = file if isinstance(file, (str, os.PathLike)) else "one inside a dataset"
        raise ImageFileError(
            f"An image file must be one that Pillow can read. Received: {name}: {error}"
        ) from error


def fitted(image: "Image.Image", size: tuple[int, int], resize: str = "crop") -> np.ndarray:
    """The pixels of an image scaled to a size, see `read_image`."""
    from PIL import Image, ImageOps

    rows, columns = size
    if image.size != (columns, rows):
        method = Image.Resampling.BICUBIC
        if resize == "crop":
            image = ImageOps.fit(image, (columns, rows), method)
        elif resize == "pad":
            image = ImageOps.pad(image, (columns, rows), method)
        else:
            image = image.resize((columns, rows), method)
    return np.asarray(image)


def _rgb(image: "Image.Image") -> "Image.Image":
    from PIL import Image

    if image.mode == "F":
        raise ValueError("floating-point pixels, whose white is not defined")
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit greys to 255 instead of scaling them.
        values = np.asarray(image).clip(0, 65535).astype("uint32")
        return Image.fromarray(((values + 128) // 257).astype("uint8")).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
