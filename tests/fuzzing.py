"""Every input that mf_zoo reads, damaged and made up: one clear error, or a well-formed value.

    python -m tests.fuzzing --cases 1000000 --seed 0

Each case follows from the seed, the name of its input and its number, so it can be made again:

    python -m tests.fuzzing --seed 0 --only recipe:mutation --number 1234

Cases run in child processes, whose memory is limited and whose time is watched. A case fails if
another error than ours comes out, if the child dies or takes too long, if code is run that no
library holds, if a process or a connection is started, if a file outside the case's folder is
opened, or if what a reader returns is not what it promises.
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import io
import json
import math
import mmap
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
MEMORY = 1 << 30  # bytes that a case may add to those of the process
SECONDS = 5  # of a case
_SILENCE = 20  # seconds after which a child that ignores its alarm is killed
COLUMNS = ("input", "method", "cases", "refused", "accepted", "failures", "seed", "minutes")


class Wrong(AssertionError):
    """A reader returned what it does not promise, or did what it must not do."""


@dataclasses.dataclass(frozen=True)
class Reader:
    """An input of mf_zoo.

    Attributes:
        name: What it is called in the table.
        share: Its part of all cases, relative to others.
        make: Called once in a folder: returns examples that are valid.
        read: Reads a case in a folder from its bytes; returns whether it was accepted.
        structured: Makes a case of the right form, from a generator and the examples.
    """

    name: str
    share: float
    make: Callable[[Path], list[bytes]]
    read: Callable[[Path, bytes], Any]
    structured: Callable[[np.random.Generator, list[bytes]], bytes] | None = None


# How cases are made.

_TOKENS = (
    *(b"", b"null", b"true", b"[]", b"{}", b'""', b"-1", b"0", b"1e400", b"NaN", b"nan", b"inf"),
    *(b"9" * 400, b"9" * 5000, b"[" * 20_000, b'{"a":' * 5000, b"\0", b"\xff\xfe", b"\xef\xbb\xbf"),
    *(b"../../etc/passwd", b"/etc/passwd", b"\\ud800", b"1979-05-27T07:32:00Z", b"x" * 140_000),
    *(b"__import__('os')", b"\r\n", b"\n", b",", b'"', b"=", b"'''", b"#", b"1_000", b"0x10"),
)
_NUMBERS = (0, 1, 2, 127, 128, 255, 256, 1 << 15, 1 << 16, 1 << 31, (1 << 32) - 1, (1 << 63) - 1)


def mutated(rng: np.random.Generator, examples: list[bytes]) -> bytes:
    """A valid file with a few damages: flipped bits, cuts, copies, tokens, huge numbers."""
    data = bytearray(examples[rng.integers(len(examples))])
    for _ in range(int(rng.integers(1, 5))):
        size = len(data)
        # Headers are where the fields are, so half of the damage goes there.
        end = min(size, 512) if rng.random() < 0.5 else size
        at = int(rng.integers(end + 1))
        kind = int(rng.integers(8))
        if kind == 0 and at < size:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1 and at < size:
            data[at] = int(rng.integers(256))
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + int(rng.integers(1, 64))]
        elif kind == 4:
            other = examples[rng.integers(len(examples))]
            start = int(rng.integers(len(other) + 1))
            data[at:at] = other[start : start + int(rng.integers(1, 256))]
        elif kind == 5:
            token = _TOKENS[rng.integers(len(_TOKENS))]
            data[at : at + len(token) * int(rng.integers(2))] = token
        elif kind == 6:
            width = 1 << int(rng.integers(4))
            number = _NUMBERS[rng.integers(len(_NUMBERS))] & ((1 << 8 * width) - 1)
            order = ("little", "big")[rng.integers(2)]
            data[at : at + width] = number.to_bytes(width, order)
        else:
            data[at : at + 8] = rng.bytes(8)
    return bytes(data)


_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 10**400, 0.5, -0.0, 1e308, math.nan, math.inf),
    *("", "x", "../../x", "/etc/passwd", "\ud800", "\0", "none", "0", "x" * 5000, [], {}, [[]]),
    *([None], {"a": None}, [1, "x"], ["../x"], {"": {}}, -math.inf, "cifar10", "MFResNet20"),
)


def _wrong_value(rng: np.random.Generator) -> Any:
    return _VALUES[rng.integers(len(_VALUES))]


def altered(rng: np.random.Generator, value: Any) -> Any:
    """A JSON value with one thing in it changed: a value, a key, a type."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = list(value)[rng.integers(len(value))]
        kind = rng.integers(8)
        if kind == 0:
            return {k: v for k, v in value.items() if k != key}
        if kind == 1:
            return {**value, "unknown": _wrong_value(rng)}
        return {**value, key: altered(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = int(rng.integers(len(value)))
        return [*value[:at], altered(rng, value[at]), *value[at + int(rng.integers(2)) :]]
    return _wrong_value(rng)


def structured_json(rng: np.random.Generator, examples: list[bytes]) -> bytes:
    """A JSON file whose values are of other kinds, or beyond their bounds."""
    value = json.loads(examples[rng.integers(len(examples))])
    for _ in range(int(rng.integers(1, 3))):
        value = altered(rng, value)
    sys.set_int_max_str_digits(0)
    try:
        return json.dumps(value).encode()
    finally:
        sys.set_int_max_str_digits(4300)


def _toml_value(rng: np.random.Generator) -> str:
    value = _wrong_value(rng)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, dict):
        return "{a = 1}"
    return json.dumps(value).replace("null", '"none"')


def structured_toml(rng: np.random.Generator, examples: list[bytes]) -> bytes:
    """A TOML file in which some values are others."""
    lines = examples[rng.integers(len(examples))].decode().splitlines()
    for _ in range(int(rng.integers(1, 3))):
        at = int(rng.integers(len(lines)))
        key, separator, _ = lines[at].partition("=")
        if separator:
            lines[at] = f"{key}= {_toml_value(rng)}"
        else:
            lines.insert(at, f"unknown = {_toml_value(rng)}")
    return "\n".join(lines).encode(errors="surrogatepass")


def structured_rows(rng: np.random.Generator, examples: list[bytes]) -> bytes:
    """A CSV file in which some cells, or columns, are others."""
    table = [line.split(",") for line in examples[rng.integers(len(examples))].decode().split("\n")]
    for _ in range(int(rng.integers(1, 4))):
        row = table[rng.integers(len(table))]
        at = int(rng.integers(len(row)))
        kind = rng.integers(4)
        if kind == 0:
            del row[at]
            row[:] = row or [""]
        elif kind == 1:
            row.insert(at, "x")
        else:
            row[at] = str(_TOKENS[rng.integers(12)], "latin-1") if kind == 2 else "1e9"
    return "\n".join(map(",".join, table)).encode()


def structured_npy(rng: np.random.Generator, examples: list[bytes]) -> bytes:
    """An `.npz` of whole members whose headers say another dtype or shape than fits the data."""
    import zipfile

    target = io.BytesIO()
    kinds = ("|u1", "<i8", "<f8", "|O", "|V1000000", "<U1000000", "<c16", "<M8[s]", "|u1x", "<i4")
    shapes = ((2, 32, 32, 3), (2,), (), (1 << 40,), (-1, 3), (1 << 62, 1 << 62), (0, 1 << 62))
    shapes += (("x",), (2.5,), (2, 32, 32, 4), (True,))
    with zipfile.ZipFile(target, "w", int(rng.choice([0, 8]))) as archive:
        for name in ("train_image", "train_label", "test_image", "test_label"):
            right = ("|u1", (2, 32, 32, 3)) if "image" in name else ("<i8", (2,))
            kind, shape = right
            if rng.random() < 0.4:
                kind = kinds[rng.integers(len(kinds))]
            if rng.random() < 0.4:
                shape = shapes[rng.integers(len(shapes))]
            header = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape!r}, }}"
            if rng.random() < 0.05:
                header = "(" * int(rng.integers(1, 9000))
            text = header.encode() + b"\n"
            data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) % 65536) + text
            archive.writestr(
                name + ".npy", data + bytes(2 * 32 * 32 * 3 if "image" in name else 16)
            )
    return target.getvalue()


def structured_h5(rng: np.random.Generator, examples: list[bytes]) -> bytes:
    """A weight file in which an array is one that Keras never writes."""
    import h5py

    file = io.BytesIO(examples[0])
    with h5py.File(file, "r+") as content:
        places: list[str] = []
        content.visititems(
            lambda place, item: places.append(place) if isinstance(item, h5py.Dataset) else None
        )
        place = places[rng.integers(len(places))]
        group, name = content[place].parent, place.rpartition("/")[2]
        values = group[name][()]
        del group[name]
        kind, shape = int(rng.integers(13)), values.shape
        if kind == 0:
            group[name] = h5py.ExternalLink("/etc/passwd", "x")
        elif kind == 1:
            group[name] = h5py.SoftLink("/vars")
        elif kind == 2:
            group.create_dataset(name, shape, values.dtype, external=[("/etc/passwd", 0, 1 << 20)])
        elif kind == 3:
            layout = h5py.VirtualLayout(shape, values.dtype)
            layout[:] = h5py.VirtualSource("/etc/passwd", "x", shape)
            group.create_virtual_dataset(name, layout)
        elif kind == 4:
            group.create_dataset(name, (1 << 20, 1 << 20), "float64", chunks=(1, 1024))
        elif kind == 5:
            group.create_dataset(name, shape, h5py.string_dtype())
        elif kind == 6:
            group.create_dataset(name, data=h5py.Empty("float32"))
        elif kind == 7:
            group[name] = values.dtype
        elif kind == 8:
            group.create_dataset(name, shape, h5py.ref_dtype)
        elif kind == 9:
            group[name] = content
        elif kind == 10:
            group.create_dataset(name, shape, np.dtype([("a", "f4"), ("b", "f4")]))
        elif kind == 11:
            group.create_dataset(name, shape, h5py.vlen_dtype(np.float32))
        else:
            group[name] = values
            group[name].attrs["x"] = np.zeros(int(rng.integers(1, 10_000)), "uint8")
    return file.getvalue()


# Readers. Each returns whether it has accepted what it read, and checks it then.


def _file(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def _registered(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((ROOT / "weights").glob("*-cifar*.json"))]


def _read_record(folder: Path, data: bytes) -> None:
    from mf_zoo.weights import WeightRecord

    record = WeightRecord.from_json(data.decode())
    _check(WeightRecord.from_json(record.to_json()) == record, "another record when read again")
    for part in record.files:
        _check(Path(part.file).name == part.file, f"a file elsewhere: {part.file!r}")


def _recipes(folder: Path) -> list[bytes]:
    from mf_zoo.training.recipes import RECIPES, recipe_toml

    return [
        *(recipe_toml(recipe).encode() for recipe in RECIPES.values()),
        b'base = "quick"\nepochs = 20\nlearning_rate = 0.1\n',
        b'base = "paper"\nladder = "ResNet20:10,ResNet32:20"\nepochs = 30\nhorizon = 3.0\n',
    ]


def _read_recipe(folder: Path, data: bytes) -> None:
    from mf_zoo.training.recipes import load_recipe, recipe_toml

    recipe = load_recipe(_file(folder, "some.toml", data))
    numbers = [v for v in recipe.to_dict().values() if isinstance(v, float)]
    _check(all(map(math.isfinite, numbers)), "numbers that are not finite")
    recipe_toml(recipe)


_OVERRIDES = [b"epochs=3", b"horizon=none", b"flip=true", b"name=x", b"ladder=ResNet20:1"]


def _read_override(folder: Path, data: bytes) -> None:
    from mf_zoo.training.recipes import get_recipe, parse_override

    text = data.decode(errors="surrogateescape")
    key, value = parse_override(text)
    get_recipe("quick", **{key: value})


def _campaigns(folder: Path) -> list[bytes]:
    return [
        b'jobs = 2\n[defaults]\nrecipe = "cosine"\n[[runs]]\nmodel = ["MFResNet20", "ResNet20"]\n'
        b"seed = [0, 1]\n",
        b'name = "x"\noutput = "runs/x"\n[mean_field]\nquadrature = "trapezoidal"\n[[runs]]\n'
        b'model = "MFResNet20"\nrecipe = "quick"\nepochs = 10\nholdout = 5000\nfreeze = "stem"\n',
    ]


def _read_campaign(folder: Path, data: bytes) -> None:
    from mf_zoo.training.campaign.file import load_campaign

    campaign = load_campaign(_file(folder, "some.toml", data))
    _check(0 < len(campaign.runs) <= 10_000 and campaign.jobs > 0, "no campaign")
    for run in campaign.runs[:3]:
        _check("/" not in run.name, f"a run in another folder: {run.name!r}")


_DIGEST = "0" * 64
_STATE = {"epoch": 3, "checkpoint": "checkpoint-3.keras", "sha256": _DIGEST, "random_states": [[1]]}
_CONFIG = {
    "model": "MFResNet20", "dataset": "cifar10", "seed": 0, "holdout": 0, "limit": None,
    "eval_every": 1, "weights": None, "weights_sha256": None, "freeze": [], "until": None,
    "trunk": None, "trunk_sha256": None, "train_images": 50_000, "evaluated_on": "test",
    "normalization": [[125.3, 123.0, 113.9], [63.0, 62.1, 66.7]], "grown_from": [],
    "backend": "tensorflow", "versions": {"keras": "3.15"}, "device": "CPU", "command": "mf-zoo",
    "date": "2026-11-26T10:00:00",
}  # fmt: skip
_RESULT = {
    "model": "MFResNet20", "dataset": "cifar10", "evaluated_on": "test", "test_error": 8.5,
    "test_top5_error": 0.3, "test_coarse_error": None, "test_loss": 0.3, "train_loss": 0.1,
    "train_error": 1.0, "epochs": 1, "recipe": "quick", "seed": 0, "parameters": 1000,
    "train_seconds": 12.5, "backend": "torch", "device": "CPU", "command": "mf-zoo train",
    "date": "2026-11-26T10:00:00", "file": "final.weights.h5", "size": 5, "sha256": _DIGEST,
}  # fmt: skip


def _json_file(example: dict[str, Any]) -> Callable[[Path], list[bytes]]:
    return lambda folder: [json.dumps(example, indent=2).encode()]


def _run_config(folder: Path) -> list[bytes]:
    from mf_zoo.training.recipes import RECIPES

    return [json.dumps({**_CONFIG, "recipe": RECIPES["quick"].to_dict()}).encode()]


def _read_json(kind: str) -> Callable[[Path, bytes], None]:
    def read(folder: Path, data: bytes) -> None:
        from mf_zoo import files

        # The kind names a schema, where files have one.
        kinds = (kind,) if importlib.util.find_spec("mf_zoo.schemas") else ()
        found = files.read_json(_file(folder, f"{kind}.json", data), *kinds)
        _check(isinstance(found, dict), "no object")
        json.dumps(found)

    return read


def _read_config(folder: Path, data: bytes) -> None:
    from mf_zoo.training import runs
    from mf_zoo.training.settings import RunSettings

    _read_json("config")(folder, data)
    found = json.loads(data)
    RunSettings.from_dict(found)
    with contextlib.suppress(KeyError):
        runs.normalization(found)


_HISTORY = (
    b"epoch,learning_rate,loss,accuracy,test_loss,test_error,seconds,images_per_second,order_swaps\n"
    b"1,0.1,1.5,0.5,1.2,45.0,10.5,4000.0,0\n2,0.2,1.1,0.6,1.0,35.0,10.4,4100.0,1\n"
)
_TIMES = (
    b"epoch,stage,particle,time,rank,step\n0,stage1,0,1.0,0,1.0\n0,stage1,1,2.0,1,1.0\n"
    b"1,stage1,0,2.5,1,0.5\n1,stage1,1,2.0,0,2.0\n"
)
_WIDE = b"epoch,stage1/0,stage1/1\n0,1.0,2.0\n3,1.75,1.25\n"


def _read_history(folder: Path, data: bytes) -> None:
    from mf_zoo import files

    kinds = ("history",) if importlib.util.find_spec("mf_zoo.schemas") else ()
    for row in files.read_rows(_file(folder, "history.csv", data), *kinds):
        _check(isinstance(row, dict), "no rows")
    files.drop_rows_after(folder / "history.csv", 1)


def _read_times(folder: Path, data: bytes) -> None:
    from mf_zoo import visualize

    for name in ("config.json",):
        (folder / name).unlink(missing_ok=True)
    for stage in visualize.read(_file(folder, "times.csv", data)).values():
        _check(stage.times.shape == stage.ranks.shape, "ranks of another shape")
        _check(stage.times.nbytes < MEMORY // 8, "a table without end")


def _weights(folder: Path) -> list[bytes]:
    import h5py

    file = io.BytesIO()
    with h5py.File(file, "w") as content:
        for layer, shapes in {"conv2d": ((3, 3, 3, 4), (4,)), "dense": ((4, 10), (10,))}.items():
            group = content.create_group(f"layers/{layer}/vars")
            group.attrs["name"] = layer
            for number, shape in enumerate(shapes):
                group.create_dataset(str(number), data=np.ones(shape, "float32"))
        content.create_group("vars").attrs["name"] = "tiny"
    return [file.getvalue()]


def _read_weights(folder: Path, data: bytes) -> None:
    from mf_zoo.weights.files import check_file, datasets
    from mf_zoo.weights.rewriting import rewrite

    path = check_file(_file(folder, "some.weights.h5", data))
    shapes = datasets(path)
    held = sum(math.prod(shape) for shape in shapes.values())
    _check(held <= 2000 * max(len(data), 1), "more values than the file can hold")
    if shapes:
        new = rewrite(path, folder, "new", dtype="float16", max_shard_size=1 << 20)
        _check(datasets(new) == shapes, "other arrays when written anew")
        new.unlink()


def _indices(folder: Path) -> list[bytes]:
    shard = "some_00000.weights.h5"
    _file(folder, shard, _weights(folder)[0])
    names = {f"/layers/{layer}/vars": [shard] for layer in ("conv2d", "dense")}
    return [json.dumps({"metadata": {"total_size": 5}, "weight_map": names}).encode()]


def _read_index(folder: Path, data: bytes) -> None:
    from mf_zoo.weights import check_file, parts

    path = _file(folder, "some.weights.json", data)
    _check(all(part.parent == folder for part in parts(path)), "a shard elsewhere")
    check_file(path)


def _arrays(folder: Path) -> list[bytes]:
    examples = []
    for save in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        images, labels = np.zeros((2, 32, 32, 3), "uint8"), np.arange(2)
        save(file, train_image=images, train_label=labels, test_image=images, test_label=labels)
        examples.append(file.getvalue())
    return examples


def _read_arrays(folder: Path, data: bytes) -> None:
    from mf_zoo import data as datasets

    _file(folder, "cifar10.npz", data)
    images, labels = datasets.load("cifar10", "train", folder, download=False)
    _check(images.dtype == np.uint8 and images.shape[1:] == (32, 32, 3), "no images")
    _check(labels.shape == images.shape[:1] and 0 <= labels.min() <= labels.max() < 10, "no labels")


def _pictures(folder: Path) -> list[bytes]:
    from PIL import Image, features

    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), "uint8")
    examples = []
    kinds = ["PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF"]
    kinds += [kind for kind in ("WEBP", "AVIF") if features.check(kind.lower())]
    for kind in kinds:
        for mode in ("RGB", "L"):
            file = io.BytesIO()
            Image.fromarray(pixels).convert(mode).save(file, kind)
            examples.append(file.getvalue())
    file = io.BytesIO()
    Image.fromarray(pixels).convert("P").save(file, "PNG", transparency=0)
    return [*examples, file.getvalue()]


def structured_png(rng: np.random.Generator, examples: list[bytes]) -> bytes:
    """A PNG whose header says anything, with right checksums."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        size = len(content) if rng.random() < 0.9 else int(_NUMBERS[rng.integers(9)])
        return (
            struct.pack(">I", size) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    sides = (0, 1, 8, 32, 300, 65_535, 65_536, 80_000_000, (1 << 31) - 1)
    width, height = (sides[rng.integers(len(sides))] for _ in range(2))
    depth, colour = rng.choice([1, 2, 4, 8, 16, 3]), rng.choice([0, 2, 3, 4, 6, 9])
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, rng.integers(3))
    content = zlib.compress(bytes(int(rng.integers(0, 1 << 17))))
    kinds = (b"tEXt", b"eXIf", b"iCCP", b"PLTE", b"tRNS", b"acTL", b"zTXt")
    more = chunk(kinds[rng.integers(len(kinds))], rng.bytes(int(rng.integers(0, 99))))
    return b"\x89PNG\r\n\x1a\n" + (
        chunk(b"IHDR", header) + more + chunk(b"IDAT", content) + chunk(b"IEND", b"")
    )


def _read_picture(folder: Path, data: bytes) -> None:
    from mf_zoo import data as datasets

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = datasets.read_image(_file(folder, "some.png", data), (32, 32))
    _check(image.dtype == np.uint8 and image.shape == (32, 32, 3), "no picture")


def _read_scores(folder: Path, data: bytes) -> None:
    from mf_zoo import applications

    rng = np.random.default_rng(list(data[:64]) or [0])
    kinds = (
        "float32",
        "float64",
        "int64",
        "uint8",
        "complex64",
        "bool",
        "U3",
        "O",
        "M8[s]",
        "float16",
    )
    sizes = (*[(2, 10)] * 9, (0, 10), (10,), (2, 100), (2, 0), (1, 10, 1), (), (3, 11))
    shape, kind = sizes[rng.integers(len(sizes))], kinds[rng.integers(len(kinds))]
    scores = np.resize(np.frombuffer(data.ljust(8, b"\0")[:8000], "uint8"), shape).astype("int64")
    scores = scores.astype(kind) if kind != "O" else scores.astype(object)
    if kind.startswith("float") and rng.random() < 0.5:
        scores = np.resize(
            np.frombuffer(data.ljust(8, b"\0")[: len(data) // 8 * 8 or 8], kind), shape
        )
    top = _wrong_value(rng) if rng.random() < 0.3 else int(rng.integers(12))
    dataset = (None, "cifar10", "cifar100", "nowhere")[rng.integers(4)]
    found = applications.decode_predictions(scores, top, dataset)
    _check(len(found) == len(scores), "another number of images")
    for row in found:
        values = [score for _, _, score in row]
        _check(len(row) == top and values == sorted(values, reverse=True), "not in order")


_COMMANDS = (
    "train MFResNet20 --dataset cifar10 --recipe quick --set epochs=3 --seed 0 --output runs/x",
    "predict MFResNet20 cat.png --weights cifar10 --top 5 --json --resize pad --batch-size 5",
    "evaluate MFResNet20 --weights runs/x --dataset cifar10 --data-dir data",
    "tune MFResNet20 --output x --max-trials 5 --tuner random",
    "campaign some.toml --dry-run --data-dir data",
    "export MFResNet20 --format onnx --path x.onnx",
    "publish runs/x --dtype float16",
    "recipes --json",
    "--import colorsys recipes",
)


def _words(folder: Path) -> list[bytes]:
    return [command.replace(" ", "\0").encode() for command in _COMMANDS]


_PARSER: list[Any] = []


def _read_words(folder: Path, data: bytes) -> None:
    from mf_zoo import cli
    from mf_zoo.errors import UserError

    if not _PARSER:
        _PARSER.append(cli._parser())
    words = [os.fsdecode(word) for word in data.split(b"\0")]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            options = _PARSER[0].parse_args(words)
    except SystemExit as end:
        _check(end.code in (0, 2), f"exit code {end.code}")
        if end.code == 2:
            _check("error:" in said.getvalue(), "no message")
            raise UserError("usage") from end
        return
    _check(callable(options.run), "no subcommand")


def _modules(folder: Path) -> list[bytes]:
    return [b"colorsys", b"mf_zoo.plugins", b"my_package.networks", b"os.path:colorsys"]


def _read_modules(folder: Path, data: bytes) -> None:
    from mf_zoo import plugins

    # Only names that lead nowhere: importing a module is what a plugin is for.
    names = ["no_such_module_" + name for name in data.decode(errors="surrogateescape").split(":")]
    plugins.load(names)


def _models(folder: Path) -> list[bytes]:
    import keras

    from mf_zoo.layers import BasicBlock, MeanFieldStage
    from mf_zoo.optimizers import MeanFieldSGD

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.layers.Input((8, 8, 3)),
            MeanFieldStage(BasicBlock(3), num_particles=2, name="stage"),
            keras.layers.GlobalAveragePooling2D(name="pooling"),
            keras.layers.Dense(2, name="scores"),
        ],
        name="tiny",
    )
    model.compile(MeanFieldSGD(), "mse")
    path = folder / "whole.keras"
    model.save(path)
    return [path.read_bytes()]


def structured_model(rng: np.random.Generator, examples: list[bytes]) -> bytes:
    """A `.keras` file with a configuration or weights that were changed, in a whole archive."""
    import zipfile

    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(examples[0])) as source, zipfile.ZipFile(target, "w") as new:
        for name in source.namelist():
            data = source.read(name)
            if name == "config.json":
                data = structured_json(rng, [data])
                if rng.random() < 0.3:
                    words = (b"Lambda", b"TorchModuleWrapper", b"get_file", b"StringLookup")
                    data = data.replace(b"Dense", words[rng.integers(len(words))])
            elif name.endswith(".h5") and rng.random() < 0.3:
                data = structured_h5(rng, [data])
            if rng.random() < 0.03:
                name = "../" + name
            if rng.random() > 0.03:
                new.writestr(zipfile.ZipInfo(name), data)
    return target.getvalue()


def _read_model(folder: Path, data: bytes) -> None:
    import keras

    from mf_zoo.weights.files import load_model

    model = load_model(_file(folder, "some.keras", data))
    _check(isinstance(model, keras.Model), "no model")


def _prepared(format: str) -> Callable[[Path], list[bytes]]:
    def make(folder: Path) -> list[bytes]:
        sys.path.insert(0, str(ROOT / "tests"))
        import tfds_folders

        images, labels = tfds_folders.made_images(4, (32, 32, 3))
        examples = [
            {"image": image, "label": int(label), "id": f"train_{k:05}"}
            for k, (image, label) in enumerate(zip(images, labels, strict=True))
        ]
        tfds_folders.prepare_known(
            "cifar10", folder / "data", {"train": examples, "test": examples}, format
        )
        files = sorted(path for path in (folder / "data").rglob("*") if path.is_file())
        # A case is the number of a file and what it holds.
        return [bytes([number]) + path.read_bytes() for number, path in enumerate(files)]

    return make


def _read_prepared(folder: Path, data: bytes) -> None:
    from mf_zoo import data as datasets

    files = sorted(path for path in (folder / "data").rglob("*") if path.is_file())
    path = files[(data[0] if data else 0) % len(files)]
    before = path.read_bytes()
    try:
        path.write_bytes(data[1:])
        images, labels = datasets.load("cifar10", "train", folder / "data", download=False)
        _check(images.shape[1:] == (32, 32, 3) and images.shape[:1] == labels.shape, "no images")
    finally:
        path.write_bytes(before)


_SEARCH = {
    "models": ["MFResNet20"], "dataset": "cifar10", "tuner": "random", "max_trials": 5, "seed": 0,
    "holdout": 5000, "limit": None, "weights": None, "weights_sha256": None, "freeze": [],
    "space": {"learning_rate": [0.01, 1.0]}, "command": "mf-zoo tune", "backend": "torch",
}  # fmt: skip


def _searches(folder: Path) -> list[bytes]:
    from mf_zoo.training.recipes import RECIPES

    return [json.dumps({**_SEARCH, "recipe": RECIPES["quick"].to_dict()}).encode()]


def _hyperparameters() -> Any:
    import keras_tuner

    space = keras_tuner.HyperParameters()
    space.Float("learning_rate", 0.01, 1.0, sampling="log")
    space.Choice("batch_size", [32, 64])
    return space


def _oracle(folder: Path) -> Any:
    from mf_zoo.tuning.oracles import RandomSearchOracle

    oracle = RandomSearchOracle("val_accuracy", 3, seed=1, hyperparameters=_hyperparameters())
    oracle._set_project_dir(folder, "keras_tuner")
    return oracle


def _tuner_files(folder: Path) -> list[bytes]:
    with contextlib.redirect_stdout(io.StringIO()):
        oracle = _oracle(folder)
        for _ in range(2):
            trial = oracle.create_trial("tuner0")
            oracle.update_trial(trial.trial_id, {"val_accuracy": 0.5})
            trial.status = "COMPLETED"
            oracle.end_trial(trial)
        oracle.save()
    _TUNER_FILES.update(
        {path: path.read_bytes() for path in sorted(folder.glob("keras_tuner/**/*.json"))}
    )
    # A case is the number of a file and what it holds.
    return [bytes([number]) + content for number, content in enumerate(_TUNER_FILES.values())]


_TUNER_FILES: dict[Path, bytes] = {}


def _structured_tuner_file(rng: np.random.Generator, examples: list[bytes]) -> bytes:
    example = examples[rng.integers(len(examples))]
    return example[:1] + structured_json(rng, [example[1:]])


def _read_tuner_files(folder: Path, data: bytes) -> None:
    for path, content in _TUNER_FILES.items():  # one that the state does not know is removed
        path.write_bytes(content)
    number = (data[0] if data else 0) % len(_TUNER_FILES)
    list(_TUNER_FILES)[number].write_bytes(data[1:])
    oracle = _oracle(folder)
    oracle.reload()
    _check(set(oracle.trials) == set(oracle.start_order), "trials that were not started")


READERS = (
    Reader("weight record", 22, _registered, _read_record, structured_json),
    Reader("recipe", 10, _recipes, _read_recipe, structured_toml),
    Reader("recipe value", 8, lambda folder: _OVERRIDES, _read_override),
    Reader("campaign", 4, _campaigns, _read_campaign, structured_toml),
    Reader("run state", 12, _json_file(_STATE), _read_json("state"), structured_json),
    Reader("run config", 6, _run_config, _read_config, structured_json),
    Reader("run result", 8, _json_file(_RESULT), _read_json("result"), structured_json),
    Reader("run history", 6, lambda f: [_HISTORY], _read_history, structured_rows),
    Reader("run times", 3, lambda f: [_TIMES, _WIDE], _read_times, structured_rows),
    Reader("search", 4, _searches, _read_json("search"), structured_json),
    Reader("tuner state", 2, _tuner_files, _read_tuner_files, _structured_tuner_file),
    Reader("weights", 4, _weights, _read_weights, structured_h5),
    Reader("weight index", 4, _indices, _read_index, structured_json),
    Reader("npz data", 3, _arrays, _read_arrays, structured_npy),
    Reader("picture", 2, _pictures, _read_picture, structured_png),
    Reader("scores", 3, lambda f: [bytes(range(256)) * 4], _read_scores),
    Reader("command line", 2, _words, _read_words),
    Reader("plugin names", 1, _modules, _read_modules),
    Reader("keras model", 0.03, _models, _read_model, structured_model),
    Reader("tfrecord folder", 0.01, _prepared("tfrecord"), _read_prepared),
    Reader("array_record folder", 0.01, _prepared("array_record"), _read_prepared),
)  # fmt: skip


def _check(condition: Any, what: str) -> None:
    if not condition:
        raise Wrong(what)


# What a case must not do.

_ALLOWED: list[str] = []  # folders
_SEEN: list[str] = []  # what was done that must not be
_WATCHING = [False]
_OURS = tuple(str(ROOT / name) for name in ("mf_zoo", "weights", "applications", "tests"))
_FORBIDDEN = ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.spawn")
_FORBIDDEN += ("socket.", "pickle.", "ctypes.dlopen", "urllib.", "webbrowser.")
_PATHS = ("open", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link")
_PATHS += ("os.listdir", "os.scandir", "os.chmod", "os.truncate", "shutil.rmtree")


def preload() -> None:
    """Imports what many readers need, so that no child has to."""
    os.environ.setdefault("KERAS_BACKEND", "torch")  # which starts fastest
    import h5py  # noqa: F401
    import keras  # noqa: F401
    import PIL.Image

    import mf_zoo.layers.integrators
    import mf_zoo.layers.quadrature
    import mf_zoo.optimizers
    import mf_zoo.training.assembly
    import mf_zoo.visualize  # noqa: F401

    if importlib.util.find_spec("mf_zoo.schemas"):
        importlib.import_module("mf_zoo.schemas")
    PIL.Image.init()


def _libraries() -> list[str]:
    paths = [*map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib"))]
    paths += [*sys.path, str(ROOT), sys.prefix, sys.base_prefix, "/proc/", "/sys/", "/dev/"]
    return [os.path.realpath(path) for path in paths if path]


def _audit(event: str, arguments: tuple) -> None:
    if not _WATCHING[0]:
        return
    if event.startswith(_FORBIDDEN):
        _SEEN.append(f"{event} {str(arguments)[:200]}")
    elif event in _PATHS:
        path = arguments[0] if arguments else None
        if isinstance(path, (str, bytes, os.PathLike)):
            # Not resolved: that would be another event, and cases make no links.
            path = os.path.abspath(os.fsdecode(path))
            if not path.startswith(tuple(_ALLOWED)):
                _SEEN.append(f"{event} {path[:200]}")
    elif event == "exec":
        file = getattr(arguments[0], "co_filename", "")
        if not file.startswith(("<frozen", *_ALLOWED)) and not _of_a_library(file):
            _SEEN.append(f"exec of {file}")


def _of_a_library(file: str) -> bool:
    """Whether code without a file is what dataclasses and named tuples of libraries are made of."""
    if not file.startswith("<"):
        return False
    caller = sys._getframe(2).f_code.co_filename
    return caller.startswith(tuple(_ALLOWED)) and not caller.startswith(_OURS)


@dataclasses.dataclass
class _Counts:
    """What a child tells its parent, in memory that they share."""

    memory: mmap.mmap = dataclasses.field(default_factory=lambda: mmap.mmap(-1, 64))

    def get(self) -> tuple[int, int, int, int]:
        return struct.unpack_from("<4q", self.memory)

    def put(self, *values: int) -> None:
        struct.pack_into("<4q", self.memory, 0, *values)


def _case(reader: Reader, method: str, seed: int, number: int, examples: list[bytes]) -> bytes:
    """The bytes of a case, which follow from seed, input, method and number."""
    key = zlib.crc32(f"{reader.name}:{method}".encode())
    rng = np.random.default_rng([seed, key, number])
    make = mutated if method == "mutation" else reader.structured
    return make(rng, examples)


def _alarm(number: int, frame: Any) -> None:
    raise Wrong(f"more than {SECONDS} seconds")


def run_case(reader: Reader, folder: Path, data: bytes) -> bool:
    """Reads a case; returns whether it was accepted.

    Raises:
        Anything that is not one clear error of mf_zoo's, or `Wrong`.
    """
    from mf_zoo.errors import UserError

    _SEEN.clear()
    _WATCHING[0] = True
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        reader.read(folder, data)
        accepted = True
    except (UserError, ValueError) as error:
        # Of a ValueError the commands make the same line.
        _check(type(error) is not json.JSONDecodeError, f"a bare {error!r}")
        _check(str(error).strip(), "an error without a message")
        accepted = False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        _WATCHING[0] = False
    _check(not _SEEN, "; ".join(_SEEN[:3]))
    return accepted


def _child(
    reader: Reader, method: str, seed: int, numbers: range, folder: Path, counts: _Counts
) -> None:
    """Runs cases and never returns."""
    said = sys.stdout
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 2)  # libraries complain of damaged files there
    try:
        signal.signal(signal.SIGALRM, _alarm)
        examples = reader.make(folder)
        for example in examples[:3]:  # imports what readers need
            with contextlib.suppress(Exception):
                reader.read(folder, example)
        _ALLOWED[:] = [*_libraries(), str(folder), tempfile.gettempdir() + "/tmp"]
        sys.addaudithook(_audit)
        _limit_memory()
        _, refused, accepted, failures = counts.get()
        for number in numbers:
            counts.put(number, refused, accepted, failures)
            try:
                data = _case(reader, method, seed, number, examples)
                if run_case(reader, folder, data):
                    accepted += 1
                else:
                    refused += 1
            except BaseException as error:
                failures += 1
                last = traceback.extract_tb(error.__traceback__)[-1]
                what = f"{type(error).__name__}: {str(error)[:200]!r}"
                where = f"{Path(last.filename).name}:{last.lineno}"
                if failures <= 20:
                    _failed(said, reader, method, seed, number, f"{what} at {where}")
            counts.put(number + 1, refused, accepted, failures)
        said.flush()
        os._exit(0)
    except BaseException:
        traceback.print_exc(file=said)
        said.flush()
        os._exit(3)


def _failed(said: Any, reader: Reader, method: str, seed: int, number: int, what: str) -> None:
    name = f"{reader.name}:{method}"
    print(f"FAILED --seed {seed} --only {name!r} --number {number}: {what}", file=said, flush=True)


def _limit_memory() -> None:
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, resource.RLIM_INFINITY))


def fuzz(reader: Reader, method: str, cases: int, seed: int, first: int = 0) -> dict[str, Any]:
    """Runs cases of an input in children, which may die.

    Args:
        reader: The input.
        method: `"mutation"` or `"structure"`.
        cases: Their number.
        seed: What they follow from.
        first: Number of the first one.

    Returns:
        A row of the table.
    """
    began, counts = time.monotonic(), _Counts()
    counts.put(first, 0, 0, 0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        while counts.get()[0] < first + cases:
            at = counts.get()[0]
            sys.stdout.flush()
            child = os.fork()
            if child == 0:
                _child(reader, method, seed, range(at, first + cases), folder, counts)
            status = _wait(child, counts)
            number, refused, accepted, failures = counts.get()
            if status == 0:
                break
            if os.WIFEXITED(status):
                raise RuntimeError(f"the harness failed in {reader.name}: {status}")
            _failed(sys.stdout, reader, method, seed, number, f"died of signal {status & 127}")
            counts.put(number + 1, refused, accepted, failures + 1)
            for path in folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    _, refused, accepted, failures = counts.get()
    return _row(reader.name, method, cases, refused, accepted, failures, seed, began)


def _row(name: str, method: str, cases: int, *values: Any) -> dict[str, Any]:
    refused, accepted, failures, seed, began = values
    minutes = round((time.monotonic() - began) / 60, 3)
    return dict(
        zip(
            COLUMNS,
            (name, method, cases, refused, accepted, failures, seed, minutes),
            strict=True,
        )
    )


def _wait(child: int, counts: _Counts) -> int:
    """Waits for a child, and kills it if its counts stand still."""
    before, since, pause = counts.get(), time.monotonic(), 0.001
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return status
        if (now := counts.get()) != before:
            before, since = now, time.monotonic()
        # The first case may have to wait for Keras.
        if time.monotonic() - since > _SILENCE * (6 if before[1:] == (0, 0, 0) else 1):
            os.kill(child, signal.SIGKILL)
        time.sleep(pause)
        pause = min(0.1, 2 * pause)


# Hypothesis: texts and values that it makes up.


def hypothesis_cases(cases: int, seed: int) -> dict[str, Any]:
    """Values of any form, by hypothesis, to the readers of JSON and of values of recipes."""
    import hypothesis
    from hypothesis import strategies as st

    from mf_zoo.errors import UserError
    from mf_zoo.training import get_recipe
    from mf_zoo.training.recipes import fields
    from mf_zoo.weights import WeightRecord

    began, found = time.monotonic(), {"refused": 0, "accepted": 0, "failures": 0}
    valid = json.loads(_registered(ROOT)[0])
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    values = st.recursive(
        leaves,
        lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=4), v, max_size=3),
    )
    changes = st.tuples(st.sampled_from(sorted(valid)), values)
    recipe = st.tuples(st.sampled_from(fields()), values)

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=cases,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
    )
    @hypothesis.given(changes, recipe)
    def run(change, value):
        key, content = change
        for read in (
            lambda: WeightRecord.from_json(json.dumps({**valid, key: content})).to_json(),
            lambda: get_recipe("quick", **{value[0]: value[1]}),
        ):
            try:
                read()
                found["accepted"] += 1
            except (UserError, ValueError):
                found["refused"] += 1
            except Exception as error:
                found["failures"] += 1
                if found["failures"] <= 20:
                    print(f"FAILED --seed {seed} hypothesis: {change} {value}: {error!r}")

    run()
    made = sum(found.values())
    counts = (found["refused"], found["accepted"], found["failures"])
    return _row("records and recipes", "hypothesis", made, *counts, seed, began)


# Atheris: guided by what the code under test has not done before.


def atheris_cases(cases: int, seed: int) -> dict[str, Any] | None:
    """Cases that atheris finds by the branches they take; `None` where it is not installed."""
    if importlib.util.find_spec("atheris") is None:
        print(
            "atheris: SKIPPED, it is not installed: pip install 'mf_zoo[fuzz]' (CPython 3.11-3.13)"
        )
        return None
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "corpus").mkdir()
        for number, example in enumerate(
            [*_registered(folder), *_recipes(folder), *_campaigns(folder)]
        ):
            _file(folder / "corpus", str(number), example)
        process = subprocess.run(
            [
                *(sys.executable, "-m", "tests.fuzzing", "--atheris", str(folder)),
                *(f"-runs={cases}", f"-seed={seed + 1}", "-max_len=4096", "-timeout=10"),
                *("-rss_limit_mb=4096", f"-artifact_prefix={folder}/", str(folder / "corpus")),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        counts = json.loads((folder / "counts.json").read_text())
        if process.returncode:
            counts["failures"] += 1
            print(
                f"FAILED --seed {seed} atheris:\n{process.stdout[-1500:]}{process.stderr[-3000:]}"
            )
    values = (counts["refused"], counts["accepted"], counts["failures"])
    return _row("text loaders", "atheris", sum(values), *values, seed, began)


def _run_atheris(folder: Path, arguments: list[str]) -> None:
    import atheris

    with atheris.instrument_imports(include=["mf_zoo", "tomllib", "csv"]):
        import mf_zoo.files
        import mf_zoo.training.recipes
        import mf_zoo.weights.record  # noqa: F401
    from mf_zoo.errors import UserError

    counts = {"refused": 0, "accepted": 0, "failures": 0}
    readers = (_read_record, _read_recipe, _read_override, _read_history, _read_config)

    def save() -> None:
        (folder / "counts.json").write_text(json.dumps(counts))

    def one(data: bytes) -> None:
        # All of them, so that the corpus serves each.
        try:
            readers[zlib.crc32(data) % len(readers)](folder, data)
            counts["accepted"] += 1
        except (UserError, ValueError):
            counts["refused"] += 1
        if sum(counts.values()) % 100 == 0:
            save()

    import atexit

    atexit.register(save)
    save()
    atheris.Setup([sys.argv[0], *arguments], one)
    atheris.Fuzz()


def main(cases: int, seed: int) -> list[dict[str, Any]]:
    """Runs about so many cases over all inputs and methods.

    Args:
        cases: Their number.
        seed: What they follow from.

    Returns:
        A row for each input and method, see `COLUMNS`.
    """
    preload()
    rows = []

    def add(row: dict[str, Any] | None) -> None:
        if row is not None:
            rows.append(row)
            print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)

    guided, made_up = cases // 10, cases // 100
    for reader, method, count in plan(cases - made_up - guided // 2):
        add(fuzz(reader, method, count, seed))
    add(hypothesis_cases(made_up, seed))
    add(atheris_cases(guided, seed))
    return rows


def plan(cases: int) -> Iterator[tuple[Reader, str, int]]:
    """How many cases of each input and method there are, of so many in all."""
    total = sum(reader.share for reader in READERS)
    for reader in READERS:
        count = math.ceil(cases * reader.share / total)
        methods = ["mutation"] + ["structure"] * (reader.structured is not None)
        for method in methods:
            yield reader, method, math.ceil(count / len(methods))


def _command(arguments: list[str]) -> int:
    if arguments[:1] == ["--atheris"]:
        _run_atheris(Path(arguments[1]), arguments[2:])
        return 0
    parser = argparse.ArgumentParser(prog="python -m tests.fuzzing", description=__doc__)
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", metavar="INPUT:METHOD")
    parser.add_argument("--number", type=int, help="that case of --only alone")
    options = parser.parse_args(arguments)
    if options.only is None:
        rows = main(options.cases, options.seed)
    else:
        name, _, method = options.only.partition(":")
        preload()
        (reader,) = (reader for reader in READERS if reader.name == name)
        first, count = (0, options.cases) if options.number is None else (options.number, 1)
        methods = [method] if method else ["mutation", "structure"]
        rows = [fuzz(reader, kind, count, options.seed, first) for kind in methods]
        for row in rows:
            print(row)
    print(f"{sum(row['cases'] for row in rows)} cases, {sum(r['failures'] for r in rows)} failures")
    return 1 if any(row["failures"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(_command(sys.argv[1:]))
