"""What is installed, from where it is imported, and what an import costs."""

import csv
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import textwrap
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

pytestmark = pytest.mark.once

ROOT = Path(__file__).resolve().parent.parent
OPTIONAL = ("tensorflow", "tensorflow_datasets", "grain", "keras_tuner")
NOT_COPIED = shutil.ignore_patterns(
    *(".*", "__pycache__", "build", "dist", "runs", "*.egg-info", "tests", "node_modules"),
    *("demo.png", "demo.html"),
)


def run(*command, cwd, **environment):
    """Runs a command without this process's settings of Python's path; returns its output."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**env, "KERAS_BACKEND": "jax", "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def python(code, cwd, executable=sys.executable, **environment):
    return run(executable, "-c", textwrap.dedent(code), cwd=cwd, **environment)


def pip(*arguments, cwd):
    """Runs pip; skips the test where the build requirements cannot be had."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    offline = ("No matching distribution found for setuptools", "Could not find a version")
    if done.returncode and any(sign in done.stderr for sign in offline):
        pytest.skip(f"building needs setuptools >= 77, from a package index: {done.stderr[-300:]}")
    assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"


def isolation():
    """Builds in an isolated environment only where this one cannot build."""
    try:
        setuptools = importlib.metadata.version("setuptools")
    except importlib.metadata.PackageNotFoundError:
        return []
    return ["--no-build-isolation"] if int(setuptools.split(".")[0]) >= 77 else []


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the source tree, for builds leave traces in theirs."""
    copy = tmp_path_factory.mktemp("source") / "mf_zoo-source"
    shutil.copytree(ROOT, copy, ignore=NOT_COPIED)
    (copy / "weights" / "large").mkdir(exist_ok=True)
    for name in ("net-data.weights.h5", "net-more_00000.weights.h5", "net-more.weights.json"):
        (copy / "weights" / "large" / name).touch()
    return copy


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", source, "--no-deps", *isolation(), "-q", "-w", folder, cwd=folder)
    (file,) = folder.glob("mf_zoo-*.whl")
    return file


def installed(what, folder):
    """Installs mf_zoo alone into a new environment that sees this one's other packages."""
    venv.create(folder, with_pip=False)
    executable = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    site = Path(
        python("import sysconfig; print(sysconfig.get_path('purelib'))", folder, executable).strip()
    )
    # A folder named in a .pth file is searched, its own .pth files (an editable mf_zoo!) are not.
    (site / "zz_parent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    # pip would take this environment's mf_zoo, which it sees there too, for the wanted one.
    command = ("--python", executable, "install", "-q", "--no-deps", "--ignore-installed", *what)
    pip(*command, cwd=folder)
    return executable


def check_installation(executable, elsewhere, home):
    """Uses the package from another folder; everything must come from `home`."""
    code = """
        import json, mf_zoo
        from mf_zoo import applications, data, layers, optimizers, training, weights
        from mf_zoo.applications import MFResNet20

        images, labels = data.sample("cifar10")
        rooms = (mf_zoo, applications, data, layers, optimizers, training, weights)
        print(json.dumps({
            "files": [room.__file__ for room in rooms],
            "names": applications.list_models(),
            "sample": [list(images.shape), len(labels)],
            "weights": [
                weights.path(record).name
                for record in weights.records()
                if record.total_size <= weights.registry.LARGEST_IN_WHEEL
            ],
        }))
    """
    found = json.loads(python(code, elsewhere, executable).splitlines()[-1])
    for file in found["files"]:
        assert Path(file).resolve().is_relative_to(home.resolve())
    assert {"MFResNet20", "ResNet20", "MFResNet110"} <= set(found["names"])
    assert found["sample"] == [[200, 32, 32, 3], 200]
    assert sorted(found["weights"]) == sorted(
        file.name for file in (ROOT / "weights").glob("*.weights.h5")
    )
    command = executable.parent / "mf-zoo"
    assert "train" in run(command, "--help", cwd=elsewhere)


def test_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(n for n in names if n.endswith("/METADATA"))).decode()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"mf_zoo"}
    # Every module and data file of the tree is in, the mapped folders under their new names;
    # weight files too large for a wheel are not.
    assert not any("large" in name for name in names)
    for folder in ("mf_zoo", "applications", "weights"):
        for file in (ROOT / folder).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts and file.name[0] != ".":
                place = file.relative_to(ROOT).as_posix()
                if place.startswith("weights/large/"):
                    continue
                assert (place if folder == "mf_zoo" else f"mf_zoo/{place}") in names
    assert "mf_zoo/py.typed" in names
    assert any(name.startswith("mf_zoo/data/samples/") for name in names)
    assert not any("test" in Path(name).name for name in names)
    assert "License-Expression: Apache-2.0" in metadata
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_wheel_is_the_same_to_the_byte_whenever_it_is_built(wheel, tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    built = []
    for number in range(2):
        copy = tmp_path / str(number) / "mf_zoo-source"
        shutil.copytree(ROOT, copy, ignore=NOT_COPIED)
        for file in copy.rglob("*"):
            os.utime(file, (number * 10**8,) * 2)
        pip("wheel", copy, "--no-deps", *isolation(), "-q", "-w", copy.parent, cwd=tmp_path)
        (file,) = copy.parent.glob("mf_zoo-*.whl")
        built.append(file.read_bytes())
    assert built[0] == built[1]


def test_citation_and_licences_of_what_is_needed_are_up_to_date():
    import mf_zoo

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == mf_zoo.__version__
    assert citation["license"] == "Apache-2.0"
    with open(ROOT / "pyproject.toml", "rb") as file:
        project = tomllib.load(file)["project"]
    wanted = {
        Requirement(text).name
        for part in (project["dependencies"], *project["optional-dependencies"].values())
        for text in part
    } - {"mf_zoo"}
    with open(ROOT / "docs" / "trust" / "dependencies.csv", newline="") as file:
        licences = {row["package"]: row["licence"] for row in csv.DictReader(file)}
    assert licences.keys() == wanted
    assert not [name for name, text in licences.items() if "GPL" in text]


def test_wheel_works_when_installed(wheel, tmp_path):
    executable = installed([wheel], tmp_path / "venv")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    check_installation(executable, elsewhere, tmp_path / "venv")


def test_editable_installation_works(source, tmp_path):
    executable = installed([*isolation(), "-e", source], tmp_path / "venv")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    check_installation(executable, elsewhere, source)
    # In the tree itself the folders `applications` and `weights` lie at the top level.
    check_installation(executable, source, source)


def test_licence_is_the_whole_apache_licence():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "9. Accepting Warranty or Additional Liability." in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_version_is_stated_once_and_the_same():
    import mf_zoo

    assert importlib.metadata.version("mf_zoo") == mf_zoo.__version__
    assert f"## {mf_zoo.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_importing_the_name_imports_nothing():
    code = "import sys, mf_zoo; print('keras' in sys.modules, 'numpy' in sys.modules)"
    assert python(code, ROOT).split() == ["False", "False"]


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_imports_stay_lazy(backend, tmp_path):
    code = f"""
        import sys
        import keras  # itself imports matplotlib where that is installed

        before = set(sys.modules)
        import mf_zoo
        for room in mf_zoo._SUBPACKAGES:
            getattr(mf_zoo, room)
        import mf_zoo.cli
        mf_zoo.applications.MFResNet20
        mf_zoo.training.train
        imported = {{name.split(".")[0] for name in sys.modules}}
        print([name for name in {OPTIONAL!r} if name in imported])
        print(sorted(name for name in set(sys.modules) - before if "matplotlib" in name))
    """
    assert python(code, tmp_path, KERAS_BACKEND=backend).splitlines() == ["[]", "[]"]


@pytest.mark.parametrize(
    ("backend", "other", "builder"),
    [("jax", "torch", "small"), ("torch", "jax", "applications.MFResNet20")],
)
def test_trains_with_keras_and_one_backend_alone(backend, other, builder, tmp_path):
    code = f"""
        from importlib.machinery import PathFinder
        from importlib.util import find_spec

        absent = {{{other!r}, "matplotlib", "tensorboard", *{OPTIONAL!r}}}
        find = PathFinder.find_spec
        PathFinder.find_spec = lambda name, *rest: (
            None if name.split(".")[0] in absent else find(name, *rest)
        )
        assert not any(map(find_spec, absent))
        import keras
        import numpy as np
        from mf_zoo import applications, data, layers, optimizers

        def small():  # for JAX, which takes long to compile a whole network
            return keras.Sequential([
                keras.layers.Rescaling(1 / 255),
                keras.layers.Conv2D(4, 3, strides=2),
                layers.MeanFieldStage(layers.BasicBlock(4), 2),
                keras.layers.GlobalAveragePooling2D(),
                keras.layers.Dense(10, "softmax"),
            ])

        keras.utils.set_random_seed(0)
        images, labels = data.sample("cifar10")
        augment = data.Augmentation()
        batches = data.batches(
            images[:8], labels[:8], 8, shuffle=True, augment=augment, seed=0
        )
        model = {builder}()
        model.build((None, 32, 32, 3))
        before = [np.array(w, copy=True) for w in model.get_weights()]
        model.compile(
            optimizers.MeanFieldSGD(0.1, momentum=0.9),
            "sparse_categorical_crossentropy",
        )
        loss = model.fit(batches, epochs=1, verbose=0).history["loss"][0]
        changed = [not np.array_equal(a, b) for a, b in zip(before, model.get_weights())]
        print(keras.config.backend(), np.isfinite(loss), sum(changed) > len(changed) / 2)
    """
    assert python(code, tmp_path, KERAS_BACKEND=backend).split() == [backend, "True", "True"]


@pytest.mark.parametrize("room", ["data", "training", "tuning", "reporting"])
def test_lazy_names_are_what_they_say_however_often_they_are_asked_for(room):
    package = importlib.import_module(f"mf_zoo.{room}")
    modules = {file.stem for file in (ROOT / "mf_zoo" / room).glob("*.py")}
    assert not modules & set(package.__all__)  # a module, once imported, would take the name
    for name in package.__all__:
        if not name.startswith("ray_"):  # an extra
            assert getattr(package, name) is getattr(package, name)
    assert dir(package) == package.__all__ == sorted(package.__all__)
    with pytest.raises(
        AttributeError, match=rf"module 'mf_zoo\.{room}' has no attribute 'nothing'"
    ):
        package.nothing  # noqa: B018
