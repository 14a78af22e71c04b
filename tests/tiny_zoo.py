"""The `mf-zoo` command with one more model, `Tiny`, that trains in seconds, and its kin.

`python tests/tiny_zoo.py SIGNAL WHEN train Tiny ...` runs it in a process that sends itself the
signal (a name, or `-`) when the training asks for batch WHEN (`epoch.batch`, from 0; with
`epoch.batch.n` when it does so for the n-th time), or, with `epoch.state`, when the checkpoint of
that epoch (from 1) has its name but does not count yet. Such a process has no TensorFlow, unless
it is the backend.

`python tests/tiny_zoo.py SIGNAL WHEN campaign ...` passes both on to the runs that it starts. There
SIGNAL may be `PARENT`: the run kills the campaign that started it, by SIGKILL, and then sleeps.

The environment variable LOGICAL_DEVICES says as how many devices TensorFlow shall see the CPU.
"""

import collections
import importlib.machinery
import os
import pathlib
import signal
import sys
import time

from mf_zoo import applications, chains, data


def tiny(
    weights=None,
    classes=None,
    classifier_activation="softmax",
    quadrature="backward",
    horizon=None,
    initial_times="grid",
    reorder=True,
    integrator="euler",
    dataset="cifar10",
    normalization=None,
    particles=3,
):
    """Some particles, and a dropout whose random state a checkpoint must keep.

    Every layer has a name, for names are in the weight files and Keras counts in theirs.
    """
    import keras
    from keras import layers

    from mf_zoo import weights as registry
    from mf_zoo.layers import BasicBlock, MeanFieldStage

    classes = data.get(dataset).classes if classes is None else classes
    stage = MeanFieldStage(
        BasicBlock(4),
        num_particles=particles,
        quadrature=quadrature,
        horizon=horizon,
        initial_times=initial_times,
        reorder=reorder,
        integrator=integrator,
        activation="relu",
        name="stage1",
    )
    model = keras.Sequential(
        [
            layers.Input((32, 32, 3)),
            layers.Rescaling(1 / 255, name="rescaling"),
            layers.Conv2D(4, 3, strides=8, name="stem"),
            stage,
            layers.GlobalAveragePooling2D(name="pooling"),
            layers.Dropout(0.2, name="dropout"),
            layers.Dense(classes, name="predictions"),
            layers.Activation(classifier_activation, dtype="float32", name="scores"),
        ],
        name="tiny",
    )
    if weights is not None:
        registry.load(model, weights)
    return model


tiny.__name__ = "Tiny"


def tiny_without_dropout(classes=None, classifier_activation="softmax", weights=None, **others):
    """One whose training is a function of weights, optimizer and batches.

    In place of the dropout it has a BatchNormalization that is in no stage.
    """
    import keras

    from mf_zoo import weights as registry
    from mf_zoo.layers import BatchNormalization

    model = tiny(None, classes, classifier_activation, **others)
    kept = [
        BatchNormalization(name="normalization")
        if isinstance(layer, keras.layers.Dropout)
        else layer
        for layer in model.layers
    ]
    model = keras.Sequential([keras.layers.Input((32, 32, 3)), *kept], name="steady")
    if weights is not None:
        registry.load(model, weights)
    return model


tiny_without_dropout.__name__ = "Steady"


def tiny_plain(
    weights=None,
    classes=None,
    classifier_activation="softmax",
    dataset="cifar10",
    normalization=None,
):
    """A model that has no learned times."""
    return tiny(weights, classes, classifier_activation, dataset=dataset)


def tiny_of(particles):
    """The builder of `Tiny` with another number of particles."""

    def build(*arguments, **others):
        return tiny(*arguments, particles=particles, **others)

    build.__name__ = f"Tiny{particles}"
    return build


BUILDERS = {
    "Tiny": tiny,
    "TinyPlain": tiny_plain,
    "Steady": tiny_without_dropout,
    "Tiny4": tiny_of(4),
    "Tiny7": tiny_of(7),
}
for _name, _builder in BUILDERS.items():
    _architecture = applications.Architecture(
        name=_name,
        title="a tiny network",
        source="the tests",
        block=chains.BASIC,
        filters=(4,),
        blocks=({"Tiny4": 4, "Tiny7": 7}.get(_name, 3),),
        stem=applications.Stem(4, strides=8),
    )
    applications.register_network(
        applications.Network(_name, _architecture, _builder is not tiny_plain, _builder)
    )


def train(model, dataset="cifar10", *, output, **values):
    """`mf_zoo.training.train` with settings and machine as arguments by name."""
    from mf_zoo.errors import user_errors
    from mf_zoo.training import Machine, RunSettings
    from mf_zoo.training import train as real_train
    from mf_zoo.training.settings import flags

    machine = {key: values.pop(key) for key in flags(Machine) if key in values}
    chosen = {key: values.pop(key) for key in (*flags(RunSettings), "recipe") if key in values}
    with user_errors():
        settings = RunSettings(model, dataset, **chosen)
        machine = Machine(**machine)
    return real_train(settings, output, machine=machine, **values)


class _FinderWithoutTensorFlow(importlib.machinery.PathFinder):
    """Finds modules as if TensorFlow and what needs it were not installed."""

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        if fullname.split(".")[0] in ("tensorflow", "tensorflow_datasets"):
            return None
        return super().find_spec(fullname, path, target)


def main(signal_name, when, *arguments):
    parent = os.getppid()
    if os.environ["KERAS_BACKEND"] != "tensorflow":
        sys.meta_path = [
            _FinderWithoutTensorFlow if finder is importlib.machinery.PathFinder else finder
            for finder in sys.meta_path
        ]
    elif "LOGICAL_DEVICES" in os.environ:
        import tensorflow as tf

        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * int(os.environ["LOGICAL_DEVICES"]),
        )
    from mf_zoo import cli, files
    from mf_zoo.data import Batches

    batch, write_json = Batches.batch, files.write_json

    def send():
        if signal_name != "PARENT":
            os.kill(os.getpid(), getattr(signal, signal_name))
            return
        if os.getppid() == parent:  # no other process has its number yet
            os.kill(parent, signal.SIGKILL)
        time.sleep(300)

    asked = collections.Counter()

    def batch_and_signal(self, epoch, index):
        asked[epoch, index] += 1
        if when in (f"{epoch}.{index}", f"{epoch}.{index}.{asked[epoch, index]}"):
            send()
        return batch(self, epoch, index)

    def write_json_and_signal(path, data):
        if when == f"{data.get('epoch')}.state":
            send()
        write_json(path, data)

    if arguments[0] == "campaign":
        cli.campaign.COMMAND = [
            *(sys.executable, str(pathlib.Path(__file__).resolve()), "child", signal_name, when)
        ]
    elif signal_name != "-":
        Batches.batch, files.write_json = batch_and_signal, write_json_and_signal
    return cli.main(arguments)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments[0] == "child":
        from mf_zoo.cli.child import end_with_standard_input

        end_with_standard_input()
        del arguments[0]
    sys.exit(main(*arguments))
