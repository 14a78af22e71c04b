"""What `search` of a tuner takes: everything that `model.fit` does, with the same outcome."""

import itertools
import types

import keras
import keras_tuner
import numpy as np
import pytest
import tiny_zoo  # noqa: F401  # registers `Steady`

from mf_zoo import data
from mf_zoo.training import RECIPES, assembly, evaluate
from mf_zoo.tuning import MeanFieldHyperModel
from mf_zoo.tuning.inputs import TrialBatches

# Two epochs of 24 images in three batches, which Keras makes alike: nothing is drawn at random.
RECIPE = RECIPES["quick"].replace(
    epochs=2, warmup_epochs=0.5, batch_size=8, learning_rate=0.05, padding=0, flip=False
)
MIXING = data.Augmentation(padding=0, flip=False, mixup=0.4)
CLASS_WEIGHT = {1: 3.0, 4: 0.0, 6: 0.5}


def _images(count=32):
    images, labels = data.sample("cifar10")
    chosen = np.random.default_rng(0).permutation(200)[:count]
    return images[chosen], labels[chosen]


X, Y = _images()
X, Y, VX, VY = X[:24], Y[:24], X[24:], Y[24:]
WEIGHTS = np.linspace(0, 2, 24).astype("float32")
VALIDATION = {"validation_data": (VX, VY)}
HISTORY = types.SimpleNamespace(history={"loss": [1.0]})


def _array(value):
    return keras.ops.convert_to_numpy(value)


def _hypermodel(recipe=RECIPE, train_images=24, search=("momentum",)):
    return MeanFieldHyperModel(
        "Steady", classes=10, recipe=recipe, search=search, train_images=train_images, seed=3
    )


class Slices(keras.utils.PyDataset):
    """As the documentation of Keras shows it."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        chosen = slice(8 * index, 8 * index + 8)
        return X[chosen], Y[chosen]


def _tf_data():
    tf = pytest.importorskip("tensorflow")
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)


def _data_loader():
    torch = pytest.importorskip("torch")
    pairs = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    return torch.utils.data.DataLoader(pairs, batch_size=8)


def _generator():
    return (Slices()[index % 3] for index in itertools.count())


def _validation_batches():
    return data.Batches(VX, VY, 4)


ARRAYS = {"x": X, "y": Y, **VALIDATION}
CASES = {
    "validation_split": lambda: {
        "x": np.concatenate([X, VX]),
        "y": np.concatenate([Y, VY]),
        "validation_split": 0.25,
    },
    "validation_split and weights": lambda: {
        "x": np.concatenate([X, VX]),
        "y": np.concatenate([Y, VY]),
        "sample_weight": np.concatenate([WEIGHTS, 1 + np.arange(8)]),
        "validation_split": 0.25,
    },
    "sample_weight": lambda: {**ARRAYS, "sample_weight": WEIGHTS},
    "class_weight": lambda: {**ARRAYS, "class_weight": CLASS_WEIGHT},
    "weights of the validation": lambda: {
        **ARRAYS,
        "validation_data": (VX, VY, 1 + np.arange(8)),
    },
    "a validation dataset": lambda: {**ARRAYS, "validation_data": _validation_batches()},
    "some of a validation dataset": lambda: {
        **ARRAYS,
        "validation_data": _validation_batches(),
        "validation_steps": 1,
    },
    "validation_freq": lambda: {**ARRAYS, "validation_freq": 1, "validation_batch_size": 3},
    "batch_size": lambda: {**ARRAYS, "batch_size": 12},
    "steps_per_epoch": lambda: {**ARRAYS, "steps_per_epoch": 1},
    "a PyDataset": lambda: {"x": Slices(), **VALIDATION},
    "a PyDataset and class_weight": lambda: {
        "x": Slices(),
        "class_weight": CLASS_WEIGHT,
        **VALIDATION,
    },
    "Batches": lambda: {
        "x": data.Batches(X, Y, 8, shuffle=True, augment=data.Augmentation(), seed=1),
        **VALIDATION,
    },
    "tf.data": lambda: {"x": _tf_data(), **VALIDATION},
    "a DataLoader": lambda: {"x": _data_loader(), **VALIDATION},
    "a generator": lambda: {"x": _generator(), "steps_per_epoch": 3, **VALIDATION},
}
EVERYWHERE = ("validation_split and weights", "tf.data")  # the others on PyTorch alone


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(name, marks=() if name in EVERYWHERE else pytest.mark.once_on_torch)
        for name in CASES
    ],
)
def test_a_trial_is_what_fit_makes_of_the_same_arguments(case):
    arguments = CASES[case]()
    # The schedule that `build` gives is that of the very number of steps.
    steps = arguments.get("steps_per_epoch") or 24 // arguments.get("batch_size", 8)
    hypermodel = _hypermodel(train_images=8 * steps)
    hp = keras_tuner.HyperParameters()
    model = hypermodel.build(hp)
    found = hypermodel.fit(hp, model, **arguments, shuffle=False)

    arguments = CASES[case]()
    if isinstance(arguments["x"], np.ndarray):
        arguments.setdefault("batch_size", 8)
    plain = hypermodel.build(hp)
    history = plain.fit(**arguments, epochs=2, shuffle=False, verbose=0).history
    assert int(_array(model.optimizer.iterations)) == 2 * steps
    for one, two in zip(model.weights, plain.weights, strict=True):
        np.testing.assert_allclose(_array(one), _array(two), atol=1e-6, err_msg=one.path)
    assert set(found) == {*history, "seconds"}
    for name, values in history.items():
        assert found[name] == pytest.approx(values[-1], rel=1e-4), name


@pytest.mark.once_on_torch
@pytest.mark.long
def test_the_random_search_of_keras_tuner_takes_them(tmp_path):
    """As users call it; every trial is the one that `fit` alone makes."""
    both = np.concatenate([X, VX]), np.concatenate([Y, VY])
    calls = {
        "split": (both, {"validation_split": 0.25}),
        "weights": ((X, Y), {"sample_weight": WEIGHTS, "batch_size": 12, **VALIDATION}),
        "dataset": ((data.Batches(X, Y, 8, shuffle=True),), VALIDATION),
    }
    for name, (arguments, settings) in calls.items():
        hypermodel = _hypermodel()
        tuner = keras_tuner.RandomSearch(
            hypermodel,
            "val_accuracy",
            max_trials=2,
            seed=1,
            directory=tmp_path,
            project_name=name,
        )
        tuner.search(
            *arguments,
            **settings,
            callbacks=[keras.callbacks.EarlyStopping("loss", patience=5)],
            verbose=0,
        )
        trials = list(tuner.oracle.trials.values())
        assert [trial.status for trial in trials] == ["COMPLETED"] * 2, name
        hp = trials[1].hyperparameters
        expected = hypermodel.fit(hp, hypermodel.build(hp), *arguments, **settings)
        assert trials[1].score == pytest.approx(expected["val_accuracy"]), name
        loss = trials[1].metrics.get_last_value("loss")
        assert loss == pytest.approx(expected["loss"], rel=1e-5), name


@pytest.mark.once_on_torch
def test_the_checkpoint_is_the_last_epochs_whatever_is_measured(tmp_path):
    seen = []

    class Record(keras.callbacks.Callback):
        def __deepcopy__(self, memo):  # keras-tuner hands out copies
            return self

        def on_epoch_end(self, epoch, logs=None):
            seen.append((logs["val_loss"], self.model.get_weights()))

    hypermodel = _hypermodel(RECIPE.replace(epochs=3))
    # The lowest loss is what is searched, and it is not that of the last epoch.
    tuner = keras_tuner.RandomSearch(
        hypermodel,
        keras_tuner.Objective("val_loss", "min"),
        max_trials=1,
        seed=1,
        directory=tmp_path,
    )
    tuner.search(X, Y, validation_data=(X, Y), validation_freq=1, callbacks=[Record()], verbose=0)
    losses = [loss for loss, _ in seen]
    assert len(losses) == 3 and min(losses) < losses[-1]
    (trial,) = tuner.oracle.trials.values()
    assert trial.score == pytest.approx(losses[-1], rel=1e-5)
    for one, two in zip(tuner.load_model(trial).get_weights(), seen[-1][1], strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.once_on_torch
def test_labels_of_every_kind_and_tensors():
    torch = pytest.importorskip("torch")
    hypermodel, hp = _hypermodel(), keras_tuner.HyperParameters()
    expected = None
    for x, y in (
        (X, Y),
        (X, Y[:, None]),
        (X, keras.utils.to_categorical(Y, 10)),
        (torch.from_numpy(X), torch.from_numpy(Y)),
        (X.tolist(), Y.astype("float32").tolist()),
    ):
        found = hypermodel.fit(hp, hypermodel.build(hp), x, y, epochs=1)
        assert set(found) == {"loss", "accuracy", "nll", "seconds"}  # nothing to measure
        expected = expected or found["loss"]
        assert found["loss"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.once_on_torch
@pytest.mark.parametrize("mixed", [True, False])
def test_a_dataset_has_labels_of_its_own(mixed):
    """One-hot or not, whatever the recipe's trials with arrays would have."""
    recipe = RECIPE if mixed else RECIPE.replace(mixup=0.3)
    hypermodel, hp = _hypermodel(recipe), keras_tuner.HyperParameters()
    batches = data.Batches(X, Y, 8, augment=MIXING if mixed else None, num_classes=10)
    for validation in ((VX, VY), _validation_batches(), (VX, VY[:, None])):
        model = hypermodel.build(hp)
        found = hypermodel.fit(hp, model, batches, validation_data=validation)
        assert int(_array(model.optimizer.iterations)) == 6
        scores = evaluate(model, VX, VY, from_logits=True)
        assert found["val_accuracy"] == pytest.approx(scores.top1 / 100, abs=1e-6)
        assert found["val_nll"] == pytest.approx(scores.nll, rel=1e-4)


@pytest.mark.once_on_torch
def test_the_recipe_augments_weighted_images_too():
    recipe = RECIPE.replace(padding=4, flip=True, mixup=0.4, cutmix=1.0, epochs=1)
    hypermodel, hp = _hypermodel(recipe), keras_tuner.HyperParameters()
    found = []
    for weights in (None, np.ones(24), WEIGHTS):
        model = hypermodel.build(hp)
        hypermodel.fit(hp, model, X, Y, sample_weight=weights)
        found.append(model.get_weights())
    for one, two in zip(found[0], found[1], strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6)
    assert not np.allclose(found[0][-2], found[2][-2], atol=1e-4)


@pytest.mark.once
def test_weights_stay_with_their_images():
    settings = {"shuffle": True, "seed": 2, "num_classes": 10}
    augment = data.Augmentation()
    batches = TrialBatches(X, Y, 8, sample_weight=WEIGHTS, augment=augment, **settings)
    expected = data.Batches(X, Y, 8, augment=augment, **settings)
    for index in range(3):
        images, labels, weights = batches.batch(5, index)
        for one, two in zip((images, labels), expected.batch(5, index), strict=True):
            np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(weights, WEIGHTS[expected.draw(5, index)["index"]])
    assert len({tuple(batches.batch(epoch, 0)[2]) for epoch in range(3)}) == 3

    # Mixed: the loss of an image is that of each of its labels, by the weight of the label's image.
    batches = TrialBatches(X, Y, 8, sample_weight=WEIGHTS, augment=MIXING, **settings)
    expected = data.Batches(X, Y, 8, augment=MIXING, **settings)
    costs = np.random.default_rng(0).random((8, 10))  # of each label, as a network may give them
    for index in range(3):
        images, targets, weights = batches.batch(1, index)
        np.testing.assert_array_equal(images, expected.batch(1, index)[0])
        draw = expected.draw(1, index)
        own, share = draw["index"], draw["weight"]
        other = own[draw["partner"]]
        rows = np.arange(8)
        loss = share * WEIGHTS[own] * costs[rows, Y[own]]
        loss = loss + (1 - share) * WEIGHTS[other] * costs[rows, Y[other]]
        np.testing.assert_allclose(weights * (targets * costs).sum(axis=1), loss, rtol=1e-5)
        some = weights > 0
        np.testing.assert_allclose(targets.sum(axis=1)[some], 1, rtol=1e-5)


@pytest.mark.parametrize("mixing", [False, True])
def test_fit_gets_an_untuned_dataset_of_the_same_batches_on_tensorflow(monkeypatch, mixing):
    """`fit` of a trial, with weights and epochs of two batches, the last of which is not full."""
    given = []
    monkeypatch.setattr(keras.Model, "fit", lambda _, x, **settings: given.append(x) or HISTORY)
    recipe = RECIPE.replace(batch_size=10, mixup=0.4 if mixing else 0.0)
    hypermodel = _hypermodel(recipe)
    hp = keras_tuner.HyperParameters()
    hypermodel.fit(
        hp, hypermodel.build(hp), X, Y, sample_weight=WEIGHTS, steps_per_epoch=2, shuffle=True
    )
    if keras.backend.backend() != "tensorflow":
        assert isinstance(given[0], TrialBatches)
        return
    assert given[0].options().autotune.enabled is False
    source = TrialBatches(
        *(X, Y, 10),
        augment=assembly.augmentation(recipe),
        seed=hypermodel._seed(),
        num_classes=10,
        sample_weight=WEIGHTS,
        shuffle=True,
        steps_per_epoch=2,
    )
    for epoch in range(3):
        found = list(given[0])
        assert [len(batch[0]) for batch in found] == [[10, 10], [4, 10], [10, 4]][epoch]
        for index, batch in enumerate(found):
            for part, expected in zip(batch, source.batch(epoch, index), strict=True):
                np.testing.assert_array_equal(_array(part), expected)


@pytest.mark.once
def test_an_epoch_of_some_steps_begins_where_the_last_one_ended():
    batches = TrialBatches(X, Y, 8, steps_per_epoch=2, shuffle=True, seed=1)
    whole = data.Batches(X, Y, 8, shuffle=True, seed=1)
    assert len(batches) == 2
    for number in range(9):
        found = batches.batch(*divmod(number, 2))
        np.testing.assert_array_equal(found[0], whole.batch(*divmod(number, 3))[0])
    assert len(TrialBatches(X, Y, 8, steps_per_epoch=5)) == 5


@pytest.mark.once_on_torch
def test_a_search_ends_at_once_where_no_trial_can_be_trained(tmp_path):
    hypermodel, hp = _hypermodel(), keras_tuner.HyperParameters()
    model = hypermodel.build(hp)
    weights = {"sample_weight": WEIGHTS}
    for arguments, settings, message in (
        ((Slices(),), {"validation_split": 0.2}, "needs arrays.*Received: .*a Slices"),
        ((_generator(),), {}, r"needs `steps_per_epoch`\. Received"),
        ((X, Y), {**weights, "class_weight": {1: 2.0}}, "not by both"),
        ((X, Y), {"sample_weight": WEIGHTS[:5]}, r"each of the 24 images.*\(5,\)"),
        ((X, Y), {"validation_split": 1.0}, r"images on both sides\. Received: 1\.0 of 24"),
        ((X, Y), {"steps_per_epoch": 0}, r"from 1\. Received: 0"),
        ((X, Y), {"batch_size": 0}, "batch_size.*greater than 0"),
        ((X,), {}, r"Labels must be integers.*Received"),
        ((X, np.linspace(0, 1, 24)), {}, r"Labels must be integers.*float64 \(24,\)"),
        ((X[0], Y), {}, r"`images` must be \(N, height.*Received"),
    ):
        with pytest.raises(keras_tuner.errors.FatalValueError, match=message):
            hypermodel.fit(hp, model, *arguments, **settings)
    tuner = keras_tuner.RandomSearch(hypermodel, "val_accuracy", max_trials=9, directory=tmp_path)
    with pytest.raises(keras_tuner.errors.FatalValueError, match="images on both sides"):
        tuner.search(X, Y, validation_split=0.99, verbose=0)
    assert len(tuner.oracle.trials) == 1
    hypermodel = _hypermodel(search=("batch_size",))
    with pytest.raises(keras_tuner.errors.FatalValueError, match="set or searched, not both"):
        hypermodel.fit(hp, model, X, Y, batch_size=8)


@pytest.mark.once_on_torch
def test_what_is_searched_in_vain_is_told():
    hypermodel, hp = _hypermodel(search=("momentum", "cutout")), keras_tuner.HyperParameters()
    with pytest.warns(UserWarning, match="so that cutout are searched in vain"):
        hypermodel.fit(hp, hypermodel.build(hp), Slices(), epochs=1)
