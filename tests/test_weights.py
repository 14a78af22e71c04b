"""The registry of weights: records, verification, all-or-nothing loading."""

import csv
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import shutil
import types

import h5py
import keras
import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from mf_zoo import cli, data, schemas, weights
from mf_zoo.errors import UserError
from mf_zoo.weights import WeightFileError, WeightRecord
from mf_zoo.weights.record import file_stem
from mf_zoo.weights.rewriting import rewrite

L = keras.layers


def dense_net(depth=2, width=4, outputs=4):
    x = inputs = keras.Input((4,))
    for _ in range(depth):
        x = L.Dense(width, bias_initializer="random_normal")(x)
        x = L.BatchNormalization()(x)
    return keras.Model(inputs, L.Dense(outputs, name="head")(x))


def values(model):
    return [np.array(w, copy=True) for w in model.get_weights()]


def same(left, right):
    return len(left) == len(right) and all(map(np.array_equal, left, right))


def fields(**changes):
    """The fields of a valid record of a file holding b"weights"."""
    return {
        "model": "MFResNet20",
        "dataset": "cifar10",
        "name": "cifar10",
        "file": "mf_resnet20-cifar10.weights.h5",
        "sha256": hashlib.sha256(b"weights").hexdigest(),
        "size": 7,
        "parameters": 270_000,
        "classes": 10,
        "test_error": 8.25,
        "epochs": 40,
        "recipe": "quick",
        "seed": 0,
        "quadrature": "backward",
        "horizon": None,
        "device": "2 cores",
        "command": "mf-zoo train MFResNet20 --dataset cifar10",
        "date": "2026-01-31",
        "backend": "tensorflow",
        "versions": {"keras": "3.15.1"},
        "train_seconds": 3600.5,
        **changes,
    }


def shard(**changes):
    """The fields of the first shard of such a record."""
    file = "mf_resnet20-cifar10_00000.weights.h5"
    return {"file": file, "sha256": "0" * 64, "size": 5, **changes}


@pytest.fixture
def registry(tmp_path):
    """A registry of three records over two models, each with its file."""
    for model, stem, name, content in (
        ("MFResNet20", "mf_resnet20-cifar10", "cifar10", b"weights"),
        ("MFResNet20", "mf_resnet20-cifar100", "cifar100", b"WEIGHTS"),
        ("ResNet20", "resnet20-cifar10", "cifar10", b"0123456"),
    ):
        file = f"{stem}.weights.h5"
        digest = hashlib.sha256(content).hexdigest()
        record = fields(model=model, dataset=name, name=name, file=file, sha256=digest)
        (tmp_path / file).write_bytes(content)
        (tmp_path / f"{stem}.json").write_text(json.dumps(record))
    return tmp_path


# Records


@pytest.mark.once
def test_record_survives_json():
    record = WeightRecord(**fields())
    assert WeightRecord.from_json(record.to_json()) == record
    assert record.stem == "mf_resnet20-cifar10"
    assert record.test_accuracy == 91.75
    assert hash(record) == hash(WeightRecord(**fields()))
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.test_error = 0.0


@pytest.mark.once
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", 20),
        ("model", "../MFResNet20"),
        ("dataset", ""),
        ("name", "CIFAR 10"),
        ("file", "resnet20-cifar10.weights.h5"),
        ("file", "../mf_resnet20-cifar10.weights.h5"),
        ("sha256", "0" * 63),
        ("sha256", "A" * 64),
        ("sha256", None),
        ("size", 0),
        ("size", 7.0),
        ("size", True),
        ("parameters", "270000"),
        ("classes", -1),
        ("test_error", "8.25"),
        ("test_error", -0.1),
        ("test_error", 100.1),
        ("test_error", float("nan")),
        ("test_top5_error", 101),
        ("test_coarse_error", "1"),
        ("epochs", 0),
        ("recipe", " "),
        ("seed", -1),
        ("quadrature", None),
        ("horizon", 0.0),
        ("horizon", "3"),
        ("device", None),
        ("command", ""),
        ("date", "31.01.2026"),
        ("date", "2026-02-30"),
        ("date", "20260131"),
        ("date", 20260131),
        ("backend", 1),
        ("versions", "3.15.1"),
        ("versions", {"keras": 3}),
        ("train_seconds", float("inf")),
        ("train_seconds", False),
        ("train_seconds", 10**400),
        ("horizon", 10**400),
        ("reorder", None),
        ("integrator", ""),
        ("shortcut", True),
        ("shortcut", "none"),
        ("initial_weights", ""),
        ("freeze", "stem"),
        ("freeze", [1]),
        ("name", "cifar10_00000"),
        ("dtype", "bfloat16"),
        ("shards", None),
        ("shards", ["mf_resnet20-cifar10_00000.weights.h5"]),
        ("shards", [shard(mode=1)]),
        ("shards", [shard(file="../mf_resnet20-cifar10_00000.weights.h5")]),
        ("shards", [shard(file="mf_resnet20-cifar10_00001.weights.h5")]),
        ("shards", [shard(sha256="0" * 63)]),
        ("shards", [shard(sha256=0)]),
        ("shards", [shard(size=0)]),
        ("shards", [shard(size=True)]),
        ("file", "mf_resnet20-cifar100.weights.h5"),
        ("file", None),
        ("mean", 125.3),
        ("mean", [125.3, 123, 256]),
        ("std", [62.9, 0.0, 66.7]),
        ("std", ["62", "62", "62"]),
        ("std", [62.9, 62.1, 66.7]),  # without a mean
    ],
)
def test_record_refuses_a_wrong_field(field, value):
    with pytest.raises(ValueError, match=rf"`{field}` must be .*Received: {field}="):
        WeightRecord.from_json(json.dumps(fields(**{field: value})))


@pytest.mark.once
def test_record_that_is_no_utf8_is_named(tmp_path):
    path = tmp_path / "mf_resnet20-cifar10.json"
    path.write_bytes(b"\xff\xfe{")
    with pytest.raises(ValueError, match=r"must be readable UTF-8.*Received: .*cifar10\.json$"):
        WeightRecord.read(path)


def test_record_of_shards():
    second = shard(file="mf_resnet20-cifar10_00001.weights.h5", size=6)
    index = "mf_resnet20-cifar10.weights.json"
    record = WeightRecord(**fields(file=index, shards=[shard(), second], dtype="float16"))
    assert WeightRecord.from_json(record.to_json()) == record
    assert hash(WeightRecord.from_json(record.to_json())) == hash(record)
    assert [part.file for part in record.files] == [shard()["file"], second["file"], index]
    assert record.total_size == 5 + 6 + 7
    one = WeightRecord(**fields())
    assert (one.files, one.total_size, one.dtype) == ((one,), 7, "float32")
    for wrong in (fields(file=index), fields(shards=[shard()])):
        with pytest.raises(ValueError, match=r"`file` must be .*Received: file="):
            WeightRecord(**wrong)


@pytest.mark.once
def test_record_of_the_mean_and_deviation_of_images():
    record = WeightRecord(**fields(mean=[72.9], std=[90]))
    assert WeightRecord.from_json(record.to_json()) == record
    assert record.normalization == ((72.9,), (90.0,))
    assert WeightRecord(**fields()).normalization is None


@pytest.mark.once
def test_shipped_records_say_what_they_always_said():
    shipped = {record.file: record for record in weights.records()}
    for model, prefix in (("MFResNet20", "mf_resnet20"), ("ResNet20", "resnet20")):
        for name in ("cifar10", "cifar100"):
            record = shipped[f"{prefix}-{name}.weights.h5"]
            assert (record.model, record.name) == (model, name)
            older = (model, name) in (("MFResNet20", "cifar100"), ("ResNet20", "cifar10"))
            dataset = data.get(name)  # Older records do not say how images are normalised.
            assert record.normalization == (None if older else (dataset.mean, dataset.std))
            assert file_stem(model, name) == record.stem == f"{prefix}-{name}"


@pytest.mark.once
@pytest.mark.parametrize("field", list(fields()))
def test_record_refuses_a_missing_field(field):
    record = fields()
    del record[field]
    with pytest.raises(ValueError, match=rf"Received: one without \['{field}'\]"):
        WeightRecord.from_json(json.dumps(record))


@pytest.mark.once
def test_record_refuses_unknown_fields_and_no_object():
    with pytest.raises(ValueError, match=r"Received: also \['accuracy'\]"):
        WeightRecord.from_json(json.dumps(fields(accuracy=91.75)))
    with pytest.raises(ValueError, match=r"one JSON object\. Received: list"):
        WeightRecord.from_json("[1]")
    with pytest.raises(ValueError, match="valid JSON"):
        WeightRecord.from_json(json.dumps(fields())[:-1])


@pytest.mark.once
def test_record_must_lie_under_its_own_name(registry):
    shutil.copy(registry / "resnet20-cifar10.json", registry / "resnet56-cifar10.json")
    with pytest.raises(ValueError, match=r"'resnet20-cifar10.json'. Received: .*resnet56"):
        weights.records(directory=registry)


@pytest.mark.once
def test_damaged_record_names_its_file(registry):
    (registry / "resnet20-cifar10.json").write_text("{")
    with pytest.raises(ValueError, match=r"resnet20-cifar10\.json: .*valid JSON"):
        weights.records(directory=registry)


# Looking up


@pytest.mark.once
def test_records_are_selected_by_model_and_dataset(registry):
    def found(**selection):
        return [r.stem for r in weights.records(directory=registry, **selection)]

    mf10, mf100, plain = "mf_resnet20-cifar10", "mf_resnet20-cifar100", "resnet20-cifar10"
    assert found() == [mf10, mf100, plain]
    assert found(model="MFResNet20") == [mf10, mf100]
    assert found(dataset="cifar10") == [mf10, plain]
    assert found(model="ResNet20", dataset="cifar100") == []
    assert weights.get("MFResNet20", "cifar100", directory=registry).stem == mf100


@pytest.mark.once
def test_unknown_name_lists_the_right_ones(registry):
    with pytest.raises(ValueError, match=r"\['cifar10', 'cifar100'\]. Received: 'imagenet'"):
        weights.get("MFResNet20", "imagenet", directory=registry)
    with pytest.raises(
        ValueError, match=r"ResNet110.*none are registered.*Received: 'cifar10'"
    ) as caught:
        weights.get("ResNet110", "cifar10", directory=registry)
    assert "absent" not in str(caught.value)
    assert (
        "registered for MFResNet20 and ResNet20. Train some with `mf-zoo train ResNet110 "
        in str(caught.value)
    )
    with pytest.raises(ValueError, match=r"registered for MFResNet20. Received: 'cifar100'"):
        weights.get("ResNet20", "cifar100", directory=registry)


# Verification


@pytest.mark.once
def test_whole_file_is_found(registry):
    record = weights.get("ResNet20", "cifar10", directory=registry)
    file = weights.path(record, directory=registry)
    assert file.read_bytes() == b"0123456"
    assert weights.verify(file, record.sha256) == file


@pytest.mark.once
def test_missing_and_truncated_files_are_refused(registry):
    record = weights.get("ResNet20", "cifar10", directory=registry)
    file = registry / record.file
    file.write_bytes(b"012345")
    with pytest.raises(WeightFileError, match=r"7 bytes.*truncated.*Received: 6 bytes"):
        weights.path(record, directory=registry)
    with pytest.raises(WeightFileError, match=r"SHA-256"):
        weights.verify(file, record.sha256)
    file.unlink()
    with pytest.raises(WeightFileError, match=r"missing.*Received: .*resnet20-cifar10"):
        weights.path(record, directory=registry, base_url="", cache_dir=registry / "cache")


@pytest.mark.once
def test_swapped_file_is_refused(registry):
    record = weights.get("MFResNet20", "cifar10", directory=registry)
    other = weights.get("MFResNet20", "cifar100", directory=registry)
    shutil.copy(registry / other.file, registry / record.file)
    expected = rf"{record.file}.*{record.sha256}.*Received: {other.sha256}"
    with pytest.raises(WeightFileError, match=expected):
        weights.path(record, directory=registry)


@pytest.mark.once
@given(st.binary(min_size=1, max_size=200), st.data())
def test_any_flipped_bit_is_refused(tmp_path_factory, content, data):
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    flipped = bytearray(content)
    flipped[bit // 8] ^= 1 << bit % 8
    file = tmp_path_factory.getbasetemp() / "flipped.weights.h5"
    file.write_bytes(flipped)
    with pytest.raises(WeightFileError, match="damaged"):
        weights.verify(file, hashlib.sha256(content).hexdigest(), len(content))


# Loading


def test_load_gives_the_saved_weights_back(tmp_path):
    saved, model = dense_net(), dense_net()
    saved.save_weights(tmp_path / "a.weights.h5")
    assert not same(values(saved), values(model))
    weights.load(model, str(tmp_path / "a.weights.h5"))
    assert same(values(saved), values(model))


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        # Keras itself loads this one without a word: every layer it asks for is there.
        ({"depth": 3}, "has no place in the model"),
        ({"depth": 1}, "is missing instead of"),
        ({"width": 5}, r"is \(5,\) instead of \(4,\)"),
        ({"outputs": 7}, r"is \(4, 7\) instead of \(4, 4\)"),
    ],
    ids=["deeper", "shallower", "wider", "other head"],
)
def test_load_refuses_another_architecture_and_changes_nothing(tmp_path, other, difference):
    file = tmp_path / "other.weights.h5"
    dense_net(**other).save_weights(file)
    model = dense_net()
    before = values(model)
    with pytest.raises(WeightFileError, match=rf"other\.weights\.h5.*architecture.*{difference}"):
        weights.load(model, file)
    assert same(before, values(model))


def test_load_restores_the_model_when_keras_fails_half_way(tmp_path):
    @keras.saving.register_keras_serializable(package="mf_zoo_tests")
    class Refusing(L.Dense):
        def load_own_variables(self, store):
            super().load_own_variables(store)
            raise ValueError("too late to refuse")

    def model():
        return keras.Sequential([keras.Input((4,)), L.Dense(4), Refusing(3), L.Dense(2)])

    file = tmp_path / "a.weights.h5"
    model().save_weights(file)
    target = model()
    before = values(target)
    with pytest.raises(WeightFileError, match=r"(?s)unchanged.*too late to refuse"):
        weights.load(target, file)
    assert same(before, values(target))


def test_load_leaves_optimizers_alone(tmp_path):
    trained, target = dense_net(), dense_net()
    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    trained.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    trained.fit(x, x, epochs=2, verbose=0)
    trained.save_weights(tmp_path / "trained.weights.h5")
    target.compile(keras.optimizers.Adam(0.1), "mse")
    target.fit(x, x, verbose=0)
    state = [np.array(v.numpy(), copy=True) for v in target.optimizer.variables]
    weights.load(target, tmp_path / "trained.weights.h5")
    assert same(values(trained), values(target))
    assert same(state, [v.numpy() for v in target.optimizer.variables])


def test_load_refuses_a_file_with_another_number_of_particles(tmp_path):
    def model(particles):
        block = keras.Sequential([L.Dense(4, activation="tanh")])
        stage = layers.MeanFieldStage(block, particles)
        return keras.Sequential([keras.Input((4,)), stage, L.Dense(2)])

    layers = pytest.importorskip("mf_zoo.layers")
    file = tmp_path / "three.weights.h5"
    saved = model(3)
    saved.save_weights(file)
    target = model(3)
    weights.load(target, file)
    assert same(values(saved), values(target))
    target = model(4)
    before = values(target)
    with pytest.raises(WeightFileError, match=r"\(3,.*instead of \(4,"):
        weights.load(target, file)
    assert same(before, values(target))


def test_files_that_are_no_weights_are_refused_before_keras_reads_them(tmp_path):
    model = dense_net()
    before = values(model)
    whole = tmp_path / "whole.weights.h5"
    model.save_weights(whole)
    text = tmp_path / "text.weights.h5"
    text.write_text("no HDF5 at all")
    cut = tmp_path / "cut.weights.h5"
    cut.write_bytes(whole.read_bytes()[:-100])
    empty = tmp_path / "empty.weights.h5"
    empty.touch()
    for file in (text, cut, empty):
        with pytest.raises(WeightFileError, match=rf"whole HDF5 file.*{file.name}"):
            weights.load(model, file)
    with pytest.raises(WeightFileError, match=r"must exist.*Received: .*nowhere"):
        weights.load(model, tmp_path / "nowhere.weights.h5")
    with pytest.raises(WeightFileError, match=r"'\*\.weights\.h5'.*Received: .*model\.h5"):
        weights.check_file(tmp_path / "model.h5")
    assert same(before, values(model))
    assert weights.check_file(whole) == whole


def _replace(file, place, make):
    """Puts another dataset into the place of one; `make` gets its group, name, shape and values."""
    with h5py.File(file, "r+") as content:
        group, name = content[place].parent, place.rpartition("/")[2]
        values = group[name][()]
        del group[name]
        make(group, name, values)


def _external(secret):
    def make(group, name, values):
        secret.write_bytes(values.tobytes())
        group.create_dataset(
            name, values.shape, values.dtype, external=[(str(secret), 0, values.nbytes)]
        )

    return make


def _virtual(secret):
    def make(group, name, values):
        with h5py.File(secret, "w") as other:
            other["stolen"] = values
        layout = h5py.VirtualLayout(values.shape, values.dtype)
        layout[:] = h5py.VirtualSource(str(secret), "stolen", values.shape)
        group.create_virtual_dataset(name, layout)

    return make


def _large_chunk(secret):
    def make(group, name, values):
        resizable = (None,) * values.ndim
        group.create_dataset(
            name,
            data=values,
            maxshape=resizable,
            chunks=(values.shape[0], 1 << 20),
            compression="gzip",
        )

    return make


def _no_array(secret):
    return lambda group, name, values: group.create_dataset(name, data=h5py.Empty("float32"))


def _texts(secret):
    def make(group, name, values):
        group.create_dataset(name, values.shape, h5py.string_dtype())

    return make


def _link(secret):
    def make(group, name, values):
        with h5py.File(secret, "w") as other:
            other["stolen"] = values
        group[name] = h5py.ExternalLink(str(secret), "stolen")

    return make


def _soft_link(secret):
    def make(group, name, values):
        group.parent["elsewhere"] = values
        group[name] = h5py.SoftLink(group.parent.name + "/elsewhere")

    return make


def _declared(secret):
    return lambda group, name, values: group.create_dataset(name, values.shape, values.dtype)


def _declared_petabytes(secret):
    """As in CVE-2026-0897."""

    def make(group, name, values):
        group.create_dataset(name, (1 << 26, 1 << 26), "float32", chunks=(1, 1 << 10))

    return make


def _bomb(secret):
    """Compressed, and mostly not there at all."""

    def make(group, name, values):
        made = group.create_dataset(name, (1 << 14, 1 << 14), "float32", compression="gzip")
        made[0, 0] = 1

    return make


def _foreign_filter(secret):
    """One of a number for which HDF5 looks for a shared library in HDF5_PLUGIN_PATH."""

    def make(group, name, values):
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk(values.shape)
        properties.set_filter(32_015, h5py.h5z.FLAG_OPTIONAL, (1,))
        space = h5py.h5s.create_simple(values.shape)
        kind = h5py.h5t.py_create(values.dtype)
        made = h5py.h5d.create(group.id, name.encode(), kind, space, dcpl=properties)
        h5py.Dataset(made)[...] = values

    return make


def _named_type(secret):
    def make(group, name, values):
        group[name] = values.dtype

    return make


def _references(secret):
    def make(group, name, values):
        made = group.create_dataset(name, values.shape, h5py.ref_dtype)
        made[...] = group.ref

    return make


def _large_attribute(secret):
    def make(group, name, values):
        group[name] = values
        group[name].attrs["note"] = np.zeros(10_000, "float32")

    return make


def _endless(secret):
    """A group that is in itself."""

    def make(group, name, values):
        group[name] = values
        group["again"] = group

    return make


@pytest.mark.once
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_external, "stored in other files"),
        (_virtual, "stored in other files"),
        (_large_chunk, "in chunks of"),
        (_no_array, "no array of numbers"),
        (_texts, "no array of numbers"),
        (_link, "a link to elsewhere"),
        (_soft_link, "a link to elsewhere"),
        (_declared, "holds too little"),
        (_declared_petabytes, "holds too little"),
        (_bomb, "holds too little"),
        (_foreign_filter, "other filters"),
        (_named_type, "neither a group nor an array"),
        (_references, "no array of numbers"),
        (_large_attribute, "attributes of more than"),
        (_endless, "groups in a row"),
    ],
)
def test_what_keras_never_writes_is_refused_before_it_is_read(make, message, run_dir, tmp_path):
    """Loaded or published, such files would give away other files, or fill the memory."""
    model, file = dense_net(), run_dir / "final.weights.h5"
    place = next(p for p, shape in _places(file).items() if len(shape) == 2)
    _replace(file, place, make(tmp_path / "secret"))
    with pytest.raises(WeightFileError, match=message):
        weights.load(model, file)
    size, digest = file.stat().st_size, hashlib.sha256(file.read_bytes()).hexdigest()
    edit(run_dir / "result.json", size=size, sha256=digest)
    for options in ({}, {"max_shard_size": 20_000}):
        with pytest.raises(WeightFileError, match=message):
            weights.publish(run_dir, directory=tmp_path / "registry", **options)
    assert not (tmp_path / "registry").exists()


@pytest.mark.once
def test_attributes_are_not_read(tmp_path):
    # HDF5 reads some damaged ones for ever, and Keras needs none.
    file = tmp_path / "damaged.weights.h5"
    with h5py.File(file, "w") as content:
        content["layer/vars/0"] = np.ones((3, 4), "float32")
        content["layer/vars"].attrs["name"] = "layer"
    data = file.read_bytes()
    assert data.count(b"GCOL") == 1  # where texts lie
    file.write_bytes(data.replace(b"GCOL", b"xxxx"))
    new = rewrite(file, tmp_path, "new", dtype="float32", max_shard_size=1 << 20)
    with h5py.File(new) as content:
        np.testing.assert_array_equal(content["layer/vars/0"], np.ones((3, 4), "float32"))
        assert not content["layer/vars"].attrs


def _places(file):
    from mf_zoo.weights.files import datasets

    return datasets(file)


@pytest.mark.once
def test_groups_without_end_are_refused(tmp_path, monkeypatch):
    deep = tmp_path / "deep.weights.h5"
    with h5py.File(deep, "w") as content:
        group = content
        for _ in range(2000):
            group = group.create_group("g")
    with pytest.raises(WeightFileError, match="50 groups in a row"):
        weights.check_file(deep)
    wide = tmp_path / "wide.weights.h5"
    with h5py.File(wide, "w") as content:
        for number in range(12):
            content.create_group(str(number))
    weights.check_file(wide)
    monkeypatch.setattr("mf_zoo.weights.files._MOST_OBJECTS", 10)
    with pytest.raises(WeightFileError, match="more than 10 objects"):
        weights.check_file(wide)


# Shards


def convolutions(particles=3):
    """A stage of particles, arrays of all ranks, and a dropout's random state."""
    from mf_zoo.layers import BasicBlock, MeanFieldStage

    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            L.Conv2D(8, 3, name="stem"),
            MeanFieldStage(BasicBlock(8), particles, activation="relu", name="stage1"),
            L.GlobalAveragePooling2D(),
            L.Dropout(0.5),
            L.Dense(10, name="head"),
        ]
    )


@pytest.fixture
def index(tmp_path):
    """The index of such a network's shards, as Keras saves them."""
    folder = tmp_path / "shards"
    folder.mkdir()
    index = folder / "net.weights.json"
    convolutions().save_weights(index, max_shard_size=8_000 / 2**30)
    return index


def refuses(model, index, match):
    """Asserts that an index is refused and the model unchanged."""
    before = values(model)
    with pytest.raises(WeightFileError, match=match):
        weights.load(model, index)
    assert same(before, values(model))


def test_load_reads_the_shards_that_keras_saves(tmp_path):
    saved, model = convolutions(), convolutions()
    index = tmp_path / "net.weights.json"
    # An optimizer's state goes to a shard of its own, or beside variables.
    saved.compile("adam")
    saved.save_weights(index, max_shard_size=8_000 / 2**30)
    stage = json.loads(index.read_text())["weight_map"]["/layers/mean_field_stage/vars"]
    assert len(stage) >= 2
    *shards, last = weights.parts(index)
    assert last == index and sorted(shards) == sorted(tmp_path.glob("*.h5"))
    weights.load(model, index)
    assert same(values(saved), values(model))
    refuses(convolutions(4), index, r"\(3,.*instead of \(4,")


@pytest.mark.once
def test_shards_that_are_missing_or_damaged_are_refused(index):
    model = convolutions()
    shard = index.with_name("net_00001.weights.h5")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    refuses(model, index, r"whole HDF5 file.*net_00001")
    shard.unlink()
    refuses(model, index, r"must exist.*Received: .*net_00001")
    shutil.copy(index.with_name("net_00000.weights.h5"), shard)
    refuses(model, index, r"hold each variable once\. Received: .* in net_00001")
    shard.write_bytes(whole)
    weights.load(model, index)
    for part in weights.parts(index):
        # Keras, and we, look for shards by the name of the index.
        shutil.copy(part, part.with_name(part.name.replace("net", "other")))
    refuses(model, index.with_name("other.weights.json"), r"'other_00000.*Received: .*net_00000")
    index.unlink()
    refuses(model, index, r"must exist.*Received: .*net\.weights\.json")


@pytest.mark.once
@pytest.mark.parametrize(
    "name",
    ["../net_00001.weights.h5", "/etc/net_00001.weights.h5", "net_00009.weights.h5", "passwd", 7],
)
def test_an_index_names_shards_beside_it_only(index, name):
    (index.parent.parent / "net_00001.weights.h5").write_bytes(b"elsewhere")
    content = json.loads(index.read_text())
    for group, shards in content["weight_map"].items():
        content["weight_map"][group] = [
            name if shard == "net_00001.weights.h5" else shard for shard in shards
        ]
    index.write_text(json.dumps(content))
    refuses(convolutions(), index, r"(?s)index.*Received: ")
    with pytest.raises(WeightFileError, match="index"):
        weights.parts(index)


@pytest.mark.once
@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"weight_map": 1}', '{"weight_map": {}}']
)
def test_what_is_no_index_is_refused(index, content):
    index.write_text(content)
    refuses(convolutions(), index, r"index.*net\.weights\.json")


@pytest.mark.once
def test_an_index_that_hides_variables_is_refused(index):
    content = json.loads(index.read_text())
    head = content["weight_map"].pop("/layers/dense/vars")
    index.write_text(json.dumps(content))
    refuses(convolutions(), index, r"another answer than theirs for /layers/dense/vars")
    content["weight_map"]["/layers/dense/vars"] = ["net_00000.weights.h5"]
    assert head != ["net_00000.weights.h5"]
    index.write_text(json.dumps(content))
    refuses(convolutions(), index, r"another answer than theirs for /layers/dense/vars")


@pytest.mark.once
def test_a_training_that_starts_from_shards_knows_all_of_them(index):
    from mf_zoo.training import pretrained

    start = pretrained.settings(str(index), ())
    assert start["weights"] == str(index)
    content = b"".join(part.read_bytes() for part in weights.parts(index))
    assert start["weights_sha256"] == hashlib.sha256(content).hexdigest()


# Publishing


@pytest.fixture
def run_dir(tmp_path):
    """The folder of a finished run of three epochs, as `mf-zoo train` leaves it."""
    return finished_run(tmp_path / "run", dense_net())


def finished_run(run, model):
    """Makes such a folder of a run that trained a model."""
    run.mkdir()
    file = run / "final.weights.h5"
    model.save_weights(file)
    recipe = {"name": "quick", "quadrature": "midpoint", "horizon": 2.5, "integrator": "heun"}
    result = fields(
        date="2026-01-31T23:59:59+00:00",
        file=file.name,
        size=file.stat().st_size,
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        epochs=3,
        evaluated_on="test",
    )
    config = {"limit": None, "holdout": 0, "recipe": recipe, "versions": result.pop("versions")}
    config["model"] = result["model"]
    for key in ("name", "classes", "quadrature", "horizon"):
        del result[key]
    (run / "config.json").write_text(json.dumps(config))
    (run / "result.json").write_text(json.dumps(result))
    rows = [f"{epoch},0.1,{3 - epoch}.0,0.5,,,1.0,100.0,0\n" for epoch in (1, 2, 3)]
    (run / "history.csv").write_text(f"{','.join(schemas.HISTORY)}\n{''.join(rows)}")
    (run / "times.csv").write_text("epoch,stage,particle,time\n3,0,0,1.0\n")
    return run


def edit(path, /, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.once
def test_publish_registers_a_finished_run(run_dir, tmp_path):
    registry = tmp_path / "registry"
    record = weights.publish(run_dir, directory=registry)
    stem = "mf_resnet20-cifar10"
    kinds = ("history.csv", "json", "times.csv", "weights.h5")
    assert sorted(file.name for file in registry.iterdir()) == [f"{stem}.{k}" for k in kinds]
    assert weights.records(directory=registry) == [record]
    assert (record.name, record.classes, record.date) == ("cifar10", 10, "2026-01-31")
    assert (record.quadrature, record.horizon) == ("midpoint", 2.5)
    assert (record.integrator, record.reorder) == ("heun", True)
    file = weights.path(record, directory=registry)
    assert file.read_bytes() == (run_dir / "final.weights.h5").read_bytes()
    assert (record.initial_weights, record.freeze) == (None, ())
    for kind in ("history", "times"):
        copy = registry / f"{stem}.{kind}.csv"
        assert copy.read_text() == (run_dir / f"{kind}.csv").read_text()


@pytest.mark.once
def test_publish_keeps_what_the_run_normalised_images_by(run_dir, tmp_path):
    edit(run_dir / "config.json", normalization=[[129.3, 124.1, 112.4], [68.2, 65.4, 70.4]])
    record = weights.publish(run_dir, directory=tmp_path / "registry")
    assert record.normalization == ((129.3, 124.1, 112.4), (68.2, 65.4, 70.4))
    assert weights.records(directory=tmp_path / "registry") == [record]


@pytest.mark.once
def test_publish_replaces_nothing_unasked(run_dir, tmp_path):
    registry = tmp_path / "registry"
    first = weights.publish(run_dir, directory=registry)
    edit(run_dir / "result.json", test_error=1.0)
    with pytest.raises(FileExistsError, match=r"overwrite=True.*mf_resnet20-cifar10\.json"):
        weights.publish(run_dir, directory=registry)
    assert weights.records(directory=registry) == [first]
    other = weights.publish(run_dir, "cifar10-b", registry)
    assert weights.get("MFResNet20", "cifar10-b", directory=registry) == other
    (run_dir / "times.csv").unlink()
    second = weights.publish(run_dir, directory=registry, overwrite=True)
    assert weights.get("MFResNet20", "cifar10", directory=registry) == second
    assert second.test_error == 1.0
    assert not (registry / "mf_resnet20-cifar10.times.csv").exists()


@pytest.mark.once
def test_publish_command(run_dir, tmp_path, capsys):
    registry = tmp_path / "registry"
    command = ["publish", str(run_dir), "--directory", str(registry), "--name", "cifar10-b"]
    assert cli.main(command) == 0
    published = weights.get("MFResNet20", "cifar10-b", directory=registry)
    assert published.sha256 in capsys.readouterr().out
    edit(run_dir / "result.json", test_error=1.0)
    assert cli.main(command) == 2
    error = capsys.readouterr().err
    assert "choose another `--name`, or pass `--overwrite`. Received: " in error
    assert weights.records(directory=registry) == [published]
    assert cli.main([*command, "--overwrite"]) == 0
    assert weights.get("MFResNet20", "cifar10-b", directory=registry).test_error == 1.0


@pytest.mark.once
def test_publish_refuses_unfinished_and_damaged_runs(run_dir, tmp_path):
    registry = tmp_path / "registry"
    weight_file = run_dir / "final.weights.h5"
    whole = weight_file.read_bytes()
    weight_file.write_bytes(whole[:-1])
    with pytest.raises(WeightFileError, match="truncated"):
        weights.publish(run_dir, directory=registry)
    weight_file.write_bytes(whole)
    history = (run_dir / "history.csv").read_text()
    (run_dir / "history.csv").write_text("".join(history.splitlines(keepends=True)[:-1]))
    with pytest.raises(ValueError, match=r"3 epochs.*epochs \[1, 2\]"):
        weights.publish(run_dir, directory=registry)
    edit(run_dir / "result.json", file="../elsewhere.weights.h5")
    (run_dir / "history.csv").write_text(history)
    with pytest.raises(UserError, match=r"file in its folder\. Received: '\.\./elsewhere"):
        weights.publish(run_dir, directory=registry)
    (run_dir / "result.json").unlink()
    with pytest.raises(ValueError, match=r"finished run.*without result\.json"):
        weights.publish(run_dir, directory=registry)
    assert not registry.exists()


@pytest.mark.once
@pytest.mark.parametrize(
    ("change", "received"),
    [({"limit": 100}, "limit=100"), ({"holdout": 5000}, "holdout=5000")],
    ids=["limit", "holdout"],
)
def test_publish_takes_partial_runs_only_elsewhere(run_dir, tmp_path, change, received):
    edit(run_dir / "config.json", **change)
    with pytest.raises(ValueError, match=rf"whole training set.*Received: .*{received}"):
        weights.publish(run_dir, directory=tmp_path / "registry")
    with pytest.raises(ValueError, match=rf"`directory` of its own.*Received: .*{received}"):
        weights.publish(run_dir, "trial", partial=True)
    record = weights.publish(run_dir, directory=tmp_path / "registry", partial=True)
    assert weights.records(directory=tmp_path / "registry") == [record]


@pytest.mark.once
def test_killed_publish_leaves_no_record(run_dir, tmp_path, monkeypatch):
    registry = tmp_path / "registry"
    replace, done = os.replace, []

    def killed(source, target):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        weights.publish(run_dir, directory=registry)
    assert done[0].name == "mf_resnet20-cifar10.weights.h5"
    assert weights.records(directory=registry) == []


@pytest.mark.once
def test_large_files_are_published_outside_the_wheel(tmp_path, monkeypatch, run_dir):
    folder = tmp_path / "registry"
    size = (run_dir / "final.weights.h5").stat().st_size
    monkeypatch.setattr(weights.publishing, "LARGEST_IN_WHEEL", size)
    small = weights.publish(run_dir, directory=folder)
    assert weights.path(small, directory=folder) == folder / small.file
    monkeypatch.setattr(weights.publishing, "LARGEST_IN_WHEEL", size - 1)
    with pytest.raises(FileExistsError):
        weights.publish(run_dir, directory=folder)
    (folder / f"{small.stem}.json").unlink()
    with pytest.raises(FileExistsError):
        weights.publish(run_dir, directory=folder)
    large = weights.publish(run_dir, directory=folder, overwrite=True)
    assert weights.path(large, directory=folder) == folder / "large" / large.file
    assert not (folder / large.file).exists()


# Publishing in half precision and in shards


@pytest.mark.once
def test_a_shard_that_reads_back_differently_is_refused(tmp_path, monkeypatch):
    source = tmp_path / "one.weights.h5"
    with h5py.File(source, "w") as file:
        file["layers/vars/0"] = np.ones((3, 3, 2), "float32")
    create = h5py.File.create_dataset
    monkeypatch.setattr(
        h5py.File, "create_dataset", lambda file, place, data: create(file, place, data=0 * data)
    )
    with pytest.raises(OSError, match="what is read back is not what was written"):
        rewrite(source, tmp_path, "two", dtype="float32", max_shard_size=10**6)


def measured(error):
    """What an evaluation says, as far as a record is interested."""
    return types.SimpleNamespace(error=error, top5_error=0.5, coarse_error=2.5)


def rounded(model, classifier="head"):
    """What half precision makes of a network: of the kernels, but for the classifier's."""
    return [
        value.astype("float16").astype("float32")
        if "kernel" in variable.path and classifier not in variable.path
        else value
        for variable, value in zip(model.weights, values(model), strict=True)
    ]


@pytest.fixture
def conv_run(tmp_path):
    """A finished run of such a network, and the network, with random values everywhere."""
    model = convolutions()
    rng = np.random.default_rng(0)
    for variable in model.weights:
        if variable.dtype.startswith("float"):
            variable.assign(rng.uniform(0.1, 1, variable.shape))
    return finished_run(tmp_path / "run", model), model


def weight_files(folder):
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.weights.*"))


@pytest.mark.parametrize(
    "largest",
    [
        pytest.param(1_000_000, marks=pytest.mark.once, id="one file"),
        pytest.param(30_000, id="shards"),
    ],
)
def test_half_precision_loads_as_rounded_float32(conv_run, tmp_path, largest):
    run, model = conv_run
    registry = tmp_path / "registry"
    expected = rounded(model)
    changed = sum(not np.array_equal(*pair) for pair in zip(expected, values(model), strict=True))
    assert changed == 3  # of the stem and the blocks' two
    loaded, keras_alone, evaluated = convolutions(), convolutions(), []

    def evaluate(file):
        keras_alone.load_weights(file)
        evaluated.append(file.name)
        return measured(8.27)

    record = weights.publish(
        run, directory=registry, dtype="float16", evaluate=evaluate, max_shard_size=largest
    )
    assert (record.dtype, record.test_error) == ("float16", 8.27)
    assert (record.test_top5_error, record.test_coarse_error) == (0.5, 2.5)
    assert weights.records(directory=registry) == [record]
    weights.load(loaded, weights.path(record, directory=registry))
    assert {weight.dtype for weight in loaded.weights} == {"float32"}
    assert same(values(loaded), expected) and same(values(keras_alone), expected)
    assert evaluated == [record.file]
    sizes = [path.stat().st_size for path in registry.glob("*.weights.*")]
    assert len(sizes) == len(record.files) and max(sizes) <= largest
    assert len(record.shards) >= 3 or largest == 1_000_000
    assert record.total_size == sum(sizes)
    whole = (run / "final.weights.h5").stat().st_size
    assert record.shards or sizes[0] < 0.8 * whole


@pytest.mark.once
def test_half_precision_needs_the_same_test_error(conv_run, tmp_path):
    run, _ = conv_run
    registry = tmp_path / "registry"

    def publish(error):
        return weights.publish(
            run, directory=registry, dtype="float16", evaluate=lambda file: measured(error)
        )

    for error in (8.28, 8.22, float("nan")):
        with pytest.raises(
            ValueError, match=rf"0\.02 points.*Received: {error} % instead of 8\.25"
        ):
            publish(error)
    with pytest.raises(ValueError, match=r"`evaluate` must measure it\. Received: dtype='float16'"):
        weights.publish(run, directory=registry, dtype="float16")
    with pytest.raises(ValueError, match=r"`dtype` must be .*Received: dtype='bfloat16'"):
        weights.publish(run, directory=registry, dtype="bfloat16")
    assert not registry.exists()
    for error in (8.23, 8.25, 8.27):
        (registry / "mf_resnet20-cifar10.json").unlink(missing_ok=True)
        shutil.rmtree(registry, ignore_errors=True)
        assert publish(error).test_error == error


@pytest.mark.once
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("stem/kernel", 7e4, r"at most 65504 in size\. Received: layers/conv2d/vars/0 .*70000"),
        ("stem/kernel", -math.inf, r"must be finite\. Received: layers/conv2d/vars/0 .*with 1 "),
        ("head/bias", math.nan, r"must be finite\. Received: layers/dense/vars/1"),
        ("head/bias", 7e4, None),
        ("stem/kernel", 65504, None),
    ],
)
def test_half_precision_holds_finite_numbers_of_its_range(tmp_path, name, value, message):
    model = convolutions()
    (weight,) = (weight for weight in model.weights if weight.path.endswith(name))
    content = np.array(weight.numpy(), copy=True)
    content.flat[1] = value
    weight.assign(content)
    run = finished_run(tmp_path / "run", model)

    def publish():
        return weights.publish(
            run,
            directory=tmp_path / "registry",
            dtype="float16",
            evaluate=lambda file: measured(8.25),
        )

    if message is None:
        weights.load(model, weights.path(publish(), directory=tmp_path / "registry"))
        assert weight.numpy().flat[1] == value
        return
    with pytest.raises(WeightFileError, match=message):
        publish()
    assert not (tmp_path / "registry").exists()


@pytest.mark.once
def test_shards_are_verified_replaced_and_kept_out_of_the_wheel(conv_run, tmp_path, monkeypatch):
    run, model = conv_run
    registry, stem = tmp_path / "registry", "mf_resnet20-cifar10"

    def publish(largest, **options):
        return weights.publish(run, directory=registry, max_shard_size=largest, **options)

    with pytest.raises(ValueError, match=r"at least \d+ bytes, .*Received: max_shard_size=10000"):
        publish(10_000)
    for size in (0, 1.5, None):
        with pytest.raises(ValueError, match=r"whole number of bytes\. Received: max_shard_size="):
            publish(size)
    assert not registry.exists()
    record = publish(30_000)
    assert record.dtype == "float32" and record.test_error == 8.25
    shards = [f"{stem}_{i:05}.weights.h5" for i in range(len(record.shards))]
    assert weight_files(registry) == sorted([*shards, f"{stem}.weights.json"])
    loaded = convolutions()
    weights.load(loaded, weights.path(record, directory=registry))
    assert same(values(loaded), values(model))

    shard = registry / record.shards[1].file
    whole = shard.read_bytes()
    for damaged, message in (
        (whole[:-1], r"_00001\.weights\.h5 must have \d+ bytes.*truncated"),
        (whole[::-1], r"_00001\.weights\.h5 must have the SHA-256"),
        (None, r"_00001\.weights\.h5 is missing"),
    ):
        shard.write_bytes(damaged) if damaged else shard.unlink()
        with pytest.raises(WeightFileError, match=message):
            weights.path(record, directory=registry)
    # What is left of registered weights is in the way of others, too.
    for file in (registry / f"{stem}.json", registry / record.file):
        file.unlink()
    with pytest.raises(FileExistsError):
        publish(30_000)

    monkeypatch.setattr(weights.publishing, "LARGEST_IN_WHEEL", record.total_size - 1)
    large = publish(30_000, overwrite=True)
    assert weight_files(registry) == sorted(f"large/{part.file}" for part in large.files)
    file = weights.path(large, directory=registry)
    assert file == registry / "large" / large.file
    assert [part.parent for part in weights.parts(file)] == [file.parent] * len(large.files)
    monkeypatch.undo()
    one = publish(90_000_000, overwrite=True)
    assert weight_files(registry) == [one.file] == [f"{stem}.weights.h5"]


@pytest.mark.once
def test_killed_publish_of_shards_leaves_no_record(conv_run, tmp_path, monkeypatch):
    registry = tmp_path / "registry"
    replace, done = os.replace, []

    def killed(source, target):
        if target.name.endswith(".json") and not target.name.endswith(".weights.json"):
            raise KeyboardInterrupt
        if registry in target.parents:  # and not a file that is prepared elsewhere
            done.append(target.name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        weights.publish(conv_run[0], directory=registry, max_shard_size=30_000)
    # The index after all that it names.
    assert done.index("mf_resnet20-cifar10.weights.json") == len(weight_files(registry)) - 1
    assert weights.records(directory=registry) == []


@pytest.mark.once
def test_publish_command_in_half_precision(conv_run, tmp_path, monkeypatch, capsys):
    from mf_zoo import training

    run, registry = conv_run[0], tmp_path / "registry"
    asked = []

    def evaluate_weights(run, file, *, data_dir):
        asked.append((run, file.name, data_dir))
        return measured(8.26)

    monkeypatch.setattr(training, "evaluate_weights", evaluate_weights)
    command = ["publish", str(run), "--directory", str(registry), "--dtype", "float16"]
    assert cli.main(command) == 2
    assert "`--dtype float16` needs `--data-dir`" in capsys.readouterr().err
    command += ["--data-dir", "D", "--max-shard-size", "30000"]
    assert cli.main(command) == 0
    (record,) = weights.records(directory=registry)
    assert (record.dtype, record.test_error) == ("float16", 8.26) and record.shards
    assert asked == [(run, record.file, pathlib.Path("D"))]


# What is shipped


def stored_numbers(file):
    """How many numbers a weight file holds."""
    sizes = []

    def visit(_, item):
        if isinstance(item, h5py.Dataset):
            sizes.append(math.prod(item.shape))

    with h5py.File(file) as content:
        content.visititems(visit)
    return sum(sizes)


@pytest.mark.once
@pytest.mark.parametrize("model", ["MFResNet20", "ResNet20"])
def test_cifar10_weights_ship_and_are_nearly_as_good_as_the_original(model):
    # He et al., 2016, table 6: ResNet-20 has 8.75 % test error, after 164 epochs.
    assert weights.get(model, "cifar10").test_error <= 9.0


@pytest.mark.once
def test_shipped_weights_are_those_of_reports_and_not_chosen_among_seeds():
    rows = {}
    for path in (ROOT / "results").glob("*/runs.csv"):
        with path.open(newline="") as file:
            rows |= {row["sha256"]: row for row in csv.DictReader(file)}
    for record in weights.records():
        assert record.seed == 0
        if (record.model, record.dataset) == ("ResNet20", "cifar10"):
            continue  # older than campaigns
        row = rows[record.sha256]
        assert (row["model"], row["dataset"], row["seed"]) == (record.model, record.dataset, "0")
        for key in ("test_error", "test_top5_error", "test_coarse_error"):
            assert (float(row[key]) if row[key] else None) == getattr(record, key)


@pytest.mark.once
def test_shipped_weights_are_whole_and_come_with_their_history():
    for record in weights.records():
        *shards, file = weights.parts(weights.path(record))
        assert sum(map(stored_numbers, shards or [file])) == record.parameters
        assert all(part.stat().st_size <= weights.MAX_SHARD_SIZE for part in (*shards, file))
        with (weights.registry.FOLDER / f"{record.stem}.history.csv").open(newline="") as history:
            rows = list(csv.DictReader(history))
        assert [int(row["epoch"]) for row in rows] == list(range(1, record.epochs + 1))


@pytest.mark.once_on_torch
def test_a_trained_run_publishes_and_loads(tmp_path, cifar100_dir):
    from mf_zoo import applications, training

    recipe = training.get_recipe("quick", epochs=1, batch_size=32, horizon=2.0)
    run = tmp_path / "run"
    settings = training.RunSettings("MFResNet20", "cifar100", limit=64, recipe=recipe)
    result = training.train(settings, run, data_dir=cifar100_dir, verbose=0)
    registry = tmp_path / "registry"
    record = weights.publish(run, directory=registry, partial=True)
    assert record.test_error == result["test_error"]
    model = applications.MFResNet20(
        horizon=record.horizon, quadrature=record.quadrature, classes=100
    )
    weights.load(model, weights.path(record, directory=registry))
    assert model.count_params() == record.parameters
    images, labels = data.load("cifar100", "test[:64]", data_dir=cifar100_dir)
    scores = model.predict(images, verbose=0)
    predicted = scores.argmax(-1)
    assert 100 * np.mean(predicted != labels) == pytest.approx(record.test_error)
    five = np.argsort(-scores, axis=1)[:, :5]
    missed = ~(five == labels[:, None]).any(axis=1)
    assert 100 * np.mean(missed) == pytest.approx(record.test_top5_error)
    groups = np.array(data.superclasses("cifar100"))
    wrong = np.mean(groups[predicted] != groups[labels])
    assert 100 * wrong == pytest.approx(record.test_coarse_error)
