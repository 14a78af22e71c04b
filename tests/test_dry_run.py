"""What a training run would take: counted by hand, and as PyTorch keeps it."""

import json

import keras
import pytest
from keras import layers

from mf_zoo import applications, cli
from mf_zoo.layers import BasicBlock, MeanFieldStage
from mf_zoo.training import RunSettings
from mf_zoo.training.assembly import dtype_policy
from mf_zoo.training.dry_run import activation_bytes, dry_run
from mf_zoo.training.losses import SmoothedCrossentropy

TORCH = keras.config.backend() == "torch"


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_activations_of_a_tiny_network_by_hand(policy):
    with dtype_policy(policy):
        model = keras.Sequential(
            [
                layers.Input((8, 8, 3)),
                layers.Rescaling(1 / 255),
                layers.Conv2D(4, 3, padding="same"),
                MeanFieldStage(BasicBlock(4), num_particles=2, activation="relu"),
                layers.GlobalAveragePooling2D(),
                layers.Dense(5),
            ]
        )
    image, state, pooled = 8 * 8 * 3, 8 * 8 * 4, 4
    # The stage's input; of a particle its two convolutions' outputs, the ReLU between them and the
    # last one, which is the next particle's input.
    expected = 4 * (image + state + 2 * 4 * state + pooled)
    if policy != "float32":
        expected //= 2
    assert activation_bytes(model) == expected


@pytest.mark.skipif(not TORCH, reason="what Keras keeps on PyTorch")
@pytest.mark.parametrize(("policy", "size"), [("float32", 4), ("mixed_bfloat16", 2)])
def test_keras_own_layers_keep_more_on_pytorch(policy, size):
    with dtype_policy(policy):
        model = keras.Sequential(
            [
                layers.Input((8, 8, 3)),
                layers.Conv2D(4, 3, padding="same"),
                layers.BatchNormalization(),
                layers.ReLU(),
                layers.Conv2D(4, 3),
            ]
        )
    # Two copied inputs of convolutions and the ReLU in the compute dtype; the input of
    # BatchNormalization, centred and not, in float32.
    image, state = 8 * 8 * 3, 8 * 8 * 4
    assert activation_bytes(model) == size * (image + 2 * state) + 4 * 2 * state


def resnet20_bytes(side):
    """What TensorFlow and JAX keep of ResNet-20 for an image of so many pixels a side."""
    half, quarter = side // 2, side // 4
    # Stem and three particles; then the padded input of a strided convolution, the head of the
    # stage (both convolutions, the shortcut's, two ReLUs) and two particles of four tensors.
    elements = 3 * side**2 + (2 + 3 * 4) * 16 * side**2
    elements += 16 * (side + 2) ** 2 + (5 + 2 * 4) * 32 * half**2
    elements += 32 * (half + 2) ** 2 + (5 + 2 * 4) * 64 * quarter**2
    return 4 * (elements + 64)


@pytest.mark.parametrize(("remat", "inputs"), [(True, 3), (2, 2), (9, 1), ("sqrt", 2)])
def test_of_blocks_that_are_computed_again_the_inputs_are_counted(remat, inputs):
    stage = MeanFieldStage(BasicBlock(4), num_particles=3, activation="relu", remat=remat)
    model = keras.Sequential([layers.Input((8, 8, 3)), layers.Conv2D(4, 3, padding="same"), stage])
    assert activation_bytes(model) == 4 * (8 * 8 * 3 + inputs * 8 * 8 * 4)


@pytest.mark.once
def test_max_pooling_keeps_its_input_and_its_output():
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.MaxPooling2D(2)])
    assert activation_bytes(model) == 4 * (8 * 8 * 3 + 4 * 4 * 3)


@pytest.mark.once
def test_activations_need_a_network_of_known_size_and_kind():
    # The probabilities of 10 classes are kept as well.
    assert activation_bytes(applications.MFResNet20()) == resnet20_bytes(32) + 40
    with pytest.raises(ValueError, match=r"fixed size. Received: .*None, None, None"):
        activation_bytes(applications.ResNet20(input_shape=(None, None, 3)))
    with pytest.raises(ValueError, match=r"Received: <Embedding"):
        activation_bytes(keras.Sequential([keras.Input((3,)), layers.Embedding(5, 2)]))


@pytest.mark.skipif(not TORCH, reason="PyTorch tells which tensors it keeps")
@pytest.mark.parametrize(
    ("name", "policy", "others"),
    [
        ("MFResNet20", "float32", {}),
        ("MFResNet20", "float32", {"remat": True}),
        ("MFResNet20", "mixed_bfloat16", {}),
        ("MFResNet20", "float32", {"integrator": "midpoint"}),
        ("MFResNet20", "float32", {"integrator": "heun", "remat": True}),
        ("MFResNet20", "float32", {"remat": 2}),
        ("MFResNet164", "float32", {}),
        ("MFResNeXt29_32x4d", "float32", {}),
    ],
)
def test_pytorch_keeps_what_is_counted(name, policy, others):
    import torch

    with dtype_policy(policy):
        model = applications.get(name)(
            input_shape=(16, 16, 3), classifier_activation=None, **others
        )
    labels = torch.zeros(2, dtype=torch.int64)

    def kept(batch):
        storages = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage
            return tensor

        images = torch.zeros((batch, 16, 16, 3))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = SmoothedCrossentropy()(labels[:batch], model(images, training=True))
        assert loss.requires_grad
        return sum(storage.nbytes() for storage in storages.values())

    # What is kept once (weights, statistics) falls out of the difference. The loss keeps
    # logarithms of probabilities and targets, two float32 for each of 10 classes.
    assert kept(2) - kept(1) == activation_bytes(model) + 2 * 4 * 10


@pytest.mark.once
def test_dry_run_of_the_default():
    found = dry_run(RunSettings("MFResNet20"))
    assert found["parameters"] == {"trained": 272_481, "others": 274_049 - 272_481}
    assert (found["multiply_adds"], found["input_shape"]) == (40_813_184, [32, 32, 3])
    # 50,000 images: 390 full batches and a smaller one.
    assert (found["steps_per_epoch"], found["steps"]) == (391, 200 * 391)
    parts = {
        "weights": 4 * 274_049,
        "gradients": 4 * 272_481,
        "optimizer": 4 * 272_481,
        "weight_copies": 4 * 272_481,
        "activations": 128 * resnet20_bytes(32),
        "batch": 128 * (32 * 32 * 3 + 8),
        "images": 0,
    }
    assert found["memory"] == {**parts, "total": sum(parts.values())}


@pytest.mark.once
def test_dry_run_counts_what_the_recipe_changes():
    from mf_zoo.training import get_recipe

    recipe = get_recipe(
        "quick", batch_size=96, momentum=0.0, nesterov=False, cutmix=1.0, horizon=1.0
    )
    found = dry_run(
        RunSettings("MFResNet20", "cifar100", recipe=recipe, limit=1000, holdout=40), devices=4
    )
    assert (found["images"], found["steps_per_epoch"], found["steps"]) == (960, 10, 400)
    assert (found["batch_size"], found["batch_per_device"]) == (96, 24)
    trained = 272_481 + 90 * 65
    assert found["parameters"]["trained"] == trained
    assert found["memory"]["optimizer"] == 0
    assert found["memory"]["gradients"] == 4 * trained
    assert found["memory"]["batch"] == 24 * 4 * (32 * 32 * 3 + 100)
    halved = dry_run(
        RunSettings("MFResNet20", recipe=get_recipe(recipe, dtype_policy="mixed_bfloat16"))
    )
    assert halved["memory"]["activations"] == 96 * resnet20_bytes(32) // 2
    assert halved["memory"]["weights"] == 4 * 274_049
    assert halved["memory"]["weight_copies"] == 2 * 272_481


@pytest.mark.once
def test_the_command_needs_no_data_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["train", "MFResNet20", "--dry-run", "--input-size", "224", "--classes", "1000"]
    arguments += ["--images", "1281167", "--devices", "8", "--batch-size", "256", "--epochs", "90"]
    assert cli.main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["multiply_adds"] == 49 * (40_813_184 - 640) + 64 * 1000
    assert found["memory"]["activations"] == 32 * resnet20_bytes(224)
    # Eight devices share the last batch equally: seven images are left out.
    assert (found["images"], found["steps_per_epoch"]) == (1_281_160, 5005)
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    for line in (
        "input          224 x 224 x 3, 1,000 classes",
        "batch          256, 32 on each of 8 devices",
        "epoch          1,281,160 images, 5,005 steps",
        "training       90 epochs, 450,450 steps",
        f"  activations  {32 * resnet20_bytes(224):>18,}",
        f"  total        {found['memory']['total']:>18,}",
    ):
        assert line in text.splitlines()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.once
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "A model must be named"),
        ("ResNet21", "Received: 'ResNet21'"),
        ("MFResNet20 --devices 3", "Received: --batch-size=128, --devices=3"),
        ("MFResNet20 --devices 0", "`--devices` must be a whole number from 1. Received: 0"),
        ("MFResNet20 --input-size 4", "Received: input_shape=(4, 4, 3)"),
        ("MFResNet20 --dataset mnist", "Received: --dataset='mnist'"),
        ("MFResNet20 --images 100 --holdout 100", "less than the 100 training images"),
        ("MFResNet20 --limit 6 --devices 8", "Received: 6 images, --devices=8"),
        ("MFResNet20 --on-device", "needs the JAX backend"),
        ("MFResNet20 --resume", "takes no `--resume`"),
        ("MFResNet20 --freeze stem", "counts all layers as trained. Received: --freeze stem"),
        ("ResNet20 --horizon 2", "takes no `--horizon`"),
    ],
)
def test_bad_input_to_a_dry_run(arguments, message, capsys):
    assert cli.main(["train", "--dry-run", *arguments.split()]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert message in captured.err


@pytest.mark.once
@pytest.mark.parametrize("flag", ["--json", "--devices=2", "--output"])
def test_flags_of_another_way_to_train_are_bad_usage(flag, capsys):
    # The last: none given, and no dry run.
    arguments = [] if flag == "--output" else [flag, "--output", "run"]
    with pytest.raises(SystemExit) as exit_:
        cli.main(["train", "MFResNet20", *arguments])
    assert exit_.value.code == 2
    assert flag.split("=")[0] in capsys.readouterr().err.splitlines()[-1]
