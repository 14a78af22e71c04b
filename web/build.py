"""`python -m web.build --output DIR`: the page that runs networks in the browser.

Registered weights are brought to several depths by `mf_zoo.depth` and written as ONNX files, whose
outputs are the scores and pictures of the states between blocks. The page, onnxruntime-web (which
npm installs as `package-lock.json` says) and the sample images of the package are put beside them:
plain files, which any web server can serve at any address, without a network.
"""

import argparse
import functools
import itertools
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

import mf_zoo
from benchmarks.depth import particles_at
from mf_zoo import applications, data, files, weights
from mf_zoo.deploy.export import TOLERANCE
from mf_zoo.errors import UserError, user_errors

HERE = Path(__file__).resolve().parent
DEPTHS = (14, 20, 32, 44, 56, 110)
RUNTIME = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
STATISTICS = 5000  # training images for statistics of BatchNormalization, where there are any
_COLUMNS = 20  # of the picture that holds all sample images


def runtime() -> Path:
    """The folder of onnxruntime-web's files, which `npm ci` installs first where it is needed.

    Raises:
        UserError: If npm is absent or fails.
    """
    lock, installed = HERE / "package-lock.json", HERE / "node_modules" / ".package-lock.json"
    if not installed.is_file() or installed.stat().st_mtime < lock.stat().st_mtime:
        npm = shutil.which("npm")
        if npm is None:
            raise UserError("npm must be installed: it brings onnxruntime-web. Received: no npm")
        command = [npm, "ci", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise UserError(f"`npm ci` must work in {HERE}. Received: {lines[0]}")
        installed.touch()
    return installed.parent / "onnxruntime-web" / "dist"


def observed(model: keras.Model) -> keras.Model:
    """A network with outputs that show what its blocks do.

    Args:
        model: A network of the zoo, mean-field or plain.

    Returns:
        A model that shares its layers. Its output is a dictionary: `"scores"`, and for each stage
        of `n` blocks, in depth order,

        - `"stage1_states"`, `(batch, n + 1, rows, cols)`: the mean over channels of the absolute
          state, which enters the stage and which leaves each block;
        - `"stage1_changes"`, `(batch, n, rows, cols)`: the same of the change by each block;
        - `"stage1_sizes"`, `(batch, n)`: the norm of the change by that of the state before it.
    """
    inside = mf_zoo.features(model, ["*/*", model.layers[-1].name])
    found = inside.output
    outputs = {"scores": found[model.layers[-1].name]}
    for stage in mf_zoo.layers.stages(model):
        names = [f"{stage.name}/{place}" for place in ("entry", *range(stage.num_particles))]
        states = [found[name] for name in names]
        changes = [after - before for before, after in itertools.pairwise(states)]
        sizes = [_norm(y) / _norm(x) for x, y in zip(states, changes, strict=False)]
        outputs |= {
            f"{stage.name}_states": _maps(states),
            f"{stage.name}_changes": _maps(changes),
            f"{stage.name}_sizes": ops.stack(sizes, axis=1),
        }
    return keras.Model(inside.input, outputs, name=model.name)


def _maps(states: Sequence[Any]) -> Any:
    return ops.stack([ops.mean(ops.abs(state), axis=-1) for state in states], axis=1)


def _norm(state: Any) -> Any:
    return ops.sqrt(ops.sum(ops.square(state), axis=(1, 2, 3)))


class Builder:
    """Makes the files of one network at several depths.

    Args:
        model: Name of a registered network, such as `"MFResNet20"`.
        name: Name of its weights.
        data_dir: Folder of training images for the statistics of BatchNormalization; `None` for
            the sample images.
    """

    def __init__(self, model: str, name: str, data_dir: Path | None = None):
        self.architecture = applications.architecture(model)
        self.network = applications.get(model)(weights=name)
        self.title = f"{model}, {name}"
        self.dataset = weights.get(model, name).dataset
        self.images, self.labels = data.sample(self.dataset)
        some, batch_size = (self.images, self.labels), 100
        self.statistics = f"the {len(self.images)} images of this page"
        if data_dir is not None:
            loaded = data.load(self.dataset, "train", data_dir=data_dir)
            some, batch_size = tuple(part[:STATISTICS] for part in loaded), 500
            self.statistics = f"the first {len(some[0]):,} training images"
        augment = data.Augmentation(padding=4, flip=True)  # as it was trained
        self.batches = data.batches(*some, batch_size, augment=augment, seed=0)

    @functools.cache  # noqa: B019  # a builder lives as long as the command
    def at(self, depth: int) -> keras.Model:
        """The network with another number of layers, and statistics that fit it."""
        particles = particles_at(self.architecture, depth)
        if particles == self.architecture.particles:
            return self.network
        images = self.images[::2].astype("float32")
        other = mf_zoo.depth.resize(self.network, particles, coarsen="merge_updates", images=images)
        mf_zoo.depth.recalibrate(other, self.batches)
        return other

    def write(self, depth: int, folder: Path) -> dict[str, Any]:
        """Writes the network of some depth, checks the file, and returns what the page says of it.

        Raises:
            UserError: If the file does not compute what the network does.
        """
        network = self.at(depth)
        model = observed(network)
        path = folder / f"{depth}.onnx"
        mf_zoo.deploy.export(model, path, "onnx", overwrite=True)
        outputs = run(path, self.images)
        some = slice(None, None, 10)
        for name, expected in model.predict(self.images[some], verbose=0).items():
            difference = np.abs(outputs[name][some] - expected).max()
            if not difference <= TOLERANCE * np.abs(expected).max():
                raise UserError(
                    f"{path.name} must compute what the model does. Received: a difference of "
                    f"{difference:.3g} in {name}, of up to {np.abs(expected).max():.3g}"
                )
        return {
            "depth": depth,
            "trained": network is self.network,
            "file": f"{folder.name}/{path.name}",
            "bytes": path.stat().st_size,
            "right": int((outputs["scores"].argmax(1) == self.labels).sum()),
            "stages": [
                {
                    "name": stage.name,
                    "channels": filters,
                    "blocks": [
                        {"particle": one.particle, "time": one.time, "step": one.step}
                        for one in stage.blocks()
                    ],
                }
                for stage, filters in zip(
                    mf_zoo.layers.stages(network), self.architecture.channels, strict=True
                )
            ],
        }

    def build(self, depths: Sequence[int], output: Path) -> dict[str, Any]:
        """Writes all files of the network; what the page has to know of them."""
        folder = output / self.title.replace(", ", "-").lower()
        folder.mkdir(parents=True, exist_ok=True)
        files.write_atomically(folder / "images.png", self._write_images)
        found = []
        for depth in sorted(depths):
            found.append(self.write(depth, folder))
            right, size = found[-1]["right"], found[-1]["bytes"]
            print(
                f"{self.title}: depth {depth}, {size / 1e6:.1f} MB, "
                f"{len(self.labels) - right} of {len(self.labels)} sample images wrong",
                flush=True,
            )
        return {
            "title": self.title,
            "classes": data.class_names(self.dataset),
            "images": {
                "file": f"{folder.name}/images.png",
                "columns": _COLUMNS,
                "side": self.images.shape[1],
                "labels": self.labels.tolist(),
            },
            "statistics": self.statistics,
            "depths": found,
        }

    def _write_images(self, path: Path) -> None:
        from PIL import Image

        count, rows, columns, channels = self.images.shape
        grid = self.images.reshape(count // _COLUMNS, _COLUMNS, rows, columns, channels)
        picture = grid.swapaxes(1, 2).reshape(-1, _COLUMNS * columns, channels)
        Image.fromarray(picture).save(path, format="PNG", optimize=True)


def run(path: Path, images: np.ndarray) -> Mapping[str, np.ndarray]:
    """What an ONNX file computes of images, by the names of its outputs."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    given = {session.get_inputs()[0].name: images.astype("float32")}
    return dict(zip(names, session.run(names, given), strict=True))


def build(output: Path, builders: Sequence[Builder], depths: Sequence[int] = DEPTHS) -> None:
    """Builds the page.

    Args:
        output: Folder, which is made; files in it are replaced.
        builders: One for each network.
        depths: Numbers of layers.

    Raises:
        UserError: Without npm, for depths that there are not, or if a file cannot be written.
    """
    source = runtime()
    with user_errors():
        output.mkdir(parents=True, exist_ok=True)
        shutil.copytree(HERE / "page", output, dirs_exist_ok=True)
        for name in RUNTIME:
            shutil.copyfile(source / name, output / name)
        found = [builder.build(depths, output) for builder in builders]
        files.write_json(output / "networks.json", {"networks": found})


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="The page that runs networks in the browser.")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--networks", nargs="+", metavar="NETWORK:NAME", default=["MFResNet20:cifar10"]
    )
    parser.add_argument("--depths", type=int, nargs="+", metavar="N", default=list(DEPTHS))
    parser.add_argument(
        "--data-dir",
        type=Path,
        metavar="D",
        help="take statistics of BatchNormalization from its training images",
    )
    options = parser.parse_args(arguments)
    try:
        with user_errors():
            pairs = [pair.partition(":") for pair in options.networks]
            builders = [Builder(model, name, options.data_dir) for model, _, name in pairs]
        build(options.output, builders, options.depths)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    size = sum(path.stat().st_size for path in options.output.rglob("*") if path.is_file())
    print(f"{options.output / 'index.html'}: {size / 1e6:.0f} MB in all; serve it to open it:")
    print(f"    python -m http.server --directory {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
