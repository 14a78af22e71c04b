"""A training run: `model.fit` between settings that say everything and a measured result."""

import contextlib
import dataclasses
import shlex
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np

from mf_zoo import applications, data, devices, files
from mf_zoo import weights as registry
from mf_zoo.data.batching import for_fit
from mf_zoo.errors import UserError, user_errors
from mf_zoo.training import (
    assembly,
    distribution,
    folder,
    growth,
    ladder,
    pretrained,
    runs,
    statistics,
)
from mf_zoo.training.assembly import EVALUATION_BATCH
from mf_zoo.training.callbacks import (
    AverageLogs,
    Checkpoint,
    DepthOrder,
    History,
    SetEpoch,
    tensorboard_logs,
)
from mf_zoo.training.evaluation import Evaluation, evaluate
from mf_zoo.training.on_device import train_on_device
from mf_zoo.training.schedules import learning_rate_schedule
from mf_zoo.training.settings import Machine, RunSettings


def train(
    settings: RunSettings,
    output: str | Path,
    *,
    data_dir: str | Path | None = None,
    machine: Machine | None = None,
    resume: bool = False,
    tensorboard: bool = False,
    verbose: str | int = "auto",
    command: str | None = None,
) -> dict[str, Any]:
    """Trains a network of `mf_zoo.applications` and writes a run folder.

    The folder holds `config.json` (every setting, versions, device), `history.csv` and
    `times.csv` (a row per epoch, and per epoch and particle), the last epoch's checkpoint with
    `state.json`, and at the end `final.weights.h5` and `result.json`. What counts is the last
    epoch; the test error of the other ones is a record and chooses nothing.

    On one machine's CPU a run killed at any moment and resumed ends with the same weights, to
    the bit, as one that was let alone. (On JAX the last batch of an epoch, where it is smaller than
    the others, is compiled on its own: the first epoch takes longer.)

    Whatever the number of devices that share a batch (`Machine.distribute`), the run is, up to
    rounding, that of one device with the whole batch: gradients are averaged and
    BatchNormalization's statistics are those of the whole batch, of which at most `devices - 1`
    images are left out at the end of an epoch. (What a dropout drops depends on the number; the
    zoo's networks have none.) All processes must see `output`; the main one writes it.

    A run whose recipe has a `ladder` first trains the networks that it grows from, each until its
    epoch of the one schedule, in run folders of their own in `output/rungs`; one whose settings
    have a `trunk` grows from that run. It begins with the trunk's last checkpoint, refined to the
    model by `mf_zoo.depth.refine`, the optimizer's state too, with BatchNormalization's statistics
    measured anew on the first 5,000 training images. (A trunk of the same model is resumed as it
    is.) Its history and times begin with those of the trunk; its result says what all of it took
    (`image_passes`, `multiply_adds`, `total_train_seconds`) and what it has `grown_from`.

    Args:
        settings: What changes the outcome, a `RunSettings`.
        output: The run folder; must not hold a run unless `resume`.
        data_dir: Where `mf_zoo.data.load` finds the dataset.
        machine: What is asked of the machine, a `Machine`; `None` for its defaults.
        resume: Whether to resume the run in `output`, which must have been started with the same
            settings; starts it if there is none.
        tensorboard: Write TensorBoard logs to the folder's `tensorboard/`.
        verbose: As in `keras.Model.fit`; `"auto"` is a progress bar on a terminal, else a line
            per epoch.
        command: The command line to record.

    Returns:
        The content of `result.json`.

    Raises:
        UserError: If the input is bad, the folder cannot be used, or the loss is no number.

    Example:

    ```python
    from mf_zoo.training import RunSettings, train

    result = train(RunSettings("MFResNet20", recipe="quick"), "runs/a", data_dir="data")
    result["test_error"]
    ```
    """
    machine = machine or Machine()
    begun = folder.begun(Path(output)) if resume else None
    with user_errors():
        data.get(settings.dataset)
        settings = pretrained.resolve(settings, begun)
        rungs = ladder.rungs(settings) if settings.trunk is None else []
    assembly.check_on_device(machine.on_device)
    if machine.threads and not devices.limit_threads(machine.threads):
        print(
            f"note: --threads has no effect on {keras.config.backend()} here; "
            "limit the process with taskset",
            file=sys.stderr,
        )
    run = _Run(
        settings,
        Path(output),
        data_dir,
        machine,
        tensorboard,
        verbose,
        command or shlex.join(sys.argv),
    )
    with contextlib.ExitStack() as stack, distribution.start(machine.distribute) as group:
        state = run.open(group, stack, resume)
        trunk = settings.trunk
        if state["epoch"] == 0:
            for rung in rungs:
                trunk = run.climb(group, rung, trunk)
        return run.train(group, state, trunk)


@dataclasses.dataclass(frozen=True)
class _Run:
    """A run; the fields but for the last one are the arguments of `train`."""

    settings: RunSettings
    output: Path
    data_dir: str | Path | None
    machine: Machine
    tensorboard: bool
    verbose: str | int
    command: str
    top: "_Run | None" = None  # the run that this one is a rung of

    def open(
        self, group: distribution.Group, stack: contextlib.ExitStack, resume: bool
    ) -> dict[str, Any]:
        """Makes the run folder ours while the stack is open, and returns the state to resume."""

        def open_run() -> dict[str, Any]:
            stack.enter_context(files.locked(self.output))
            return folder.open_run(self.output, self.settings, resume)

        return group.from_main(open_run)

    def climb(
        self, group: distribution.Group, settings: RunSettings, trunk: str | Path | None
    ) -> Path:
        """Trains a run that this one grows from, or what is left of it, and returns its folder."""
        output = self.output / runs.RUNGS / f"{settings.model}-{settings.until}"
        rung = dataclasses.replace(self, settings=settings, output=output, top=self)
        with contextlib.ExitStack() as stack:
            if not group.from_main((output / runs.RESULT).exists):
                rung.train(group, rung.open(group, stack, resume=True), trunk)
        return output

    def train(
        self, group: distribution.Group, state: dict[str, Any], trunk_folder: str | Path | None
    ) -> dict[str, Any]:
        """Trains from `state` on, and writes the result.

        Args:
            group: Who trains.
            state: What `open` returned.
            trunk_folder: The run that it grows from where the state is a beginning, if any.
        """
        settings, recipe = self.settings, self.settings.recipe
        epoch = state["epoch"]
        if recipe.batch_size % group.devices:
            raise UserError(
                "`batch_size` must be a multiple of the number of devices that share a batch. "
                f"Received: batch_size={recipe.batch_size}, {group.devices} devices"
            )
        trunk, grown_from = None, []
        if epoch == 0 and trunk_folder is not None:
            trunk = ladder.read_trunk(trunk_folder, settings)
            grown_from = trunk.lineage
        elif epoch > 0:
            grown_from = (folder.begun(self.output) or {}).get("grown_from", [])
        keras.utils.set_random_seed(settings.seed)
        (images, labels), evaluated, split = assembly.load_data(
            settings.dataset, self.data_dir, settings.holdout, settings.limit
        )
        with user_errors():
            batches = assembly.make_batches(
                images,
                labels,
                recipe,
                settings.seed,
                data.get(settings.dataset).classes,
                divisible_by=group.devices,
                part=(group.process, group.processes),
            )
        network, state = self._network(group, state, trunk, images, len(batches))
        epoch = state["epoch"]  # an earlier one, where the newest checkpoint is damaged
        config = {
            **settings.to_dict(),
            **self.machine.to_dict(),
            "train_images": len(images),
            "evaluated_on": split,
            "evaluation_images": len(evaluated[0]),
            "steps_per_epoch": len(batches),
            "normalization": applications.normalization_of(network),
            "grown_from": grown_from,
            "backend": keras.config.backend(),
            "versions": devices.versions(),
            "device": devices.device(self.machine.threads),
            "processes": group.processes,
            "devices": group.devices,
            "data_dir": None if self.data_dir is None else str(self.data_dir),
            "command": self.command,
            "date": devices.now(),
        }
        if group.is_main:
            if self.top is not None and not (self.top.output / runs.CONFIG).exists():
                # The first rung has begun, and with it the run: `--resume` finds its settings.
                top = {**config, **self.top.settings.to_dict()}
                files.write_json(self.top.output / runs.CONFIG, top)
            folder.prepare(self.output, config, epoch, trunk)
        if trunk is not None:
            epoch = trunk.epoch
        if epoch < settings.last_epoch:
            self._fit(group, network, batches, evaluated, epoch, state)
        statistics.use_average(network, images, settings, group)
        final = _network_of(config)
        final.set_weights(network.get_weights())
        scores = _evaluate(final, settings.dataset, *evaluated)
        return group.from_main(
            lambda: folder.write_result(self.output, config, final, scores, batches.count)
        )

    def _network(
        self,
        group: distribution.Group,
        state: dict[str, Any],
        trunk: ladder.Trunk | None,
        images: np.ndarray,
        steps: int,
    ) -> tuple[keras.Model, dict[str, Any]]:
        """The compiled network and the state it is in.

        It is a new one, one grown from a trunk, or that of the newest checkpoint that can be read.
        """
        settings, recipe = self.settings, self.settings.recipe
        said = None
        with group.scope():
            if state["epoch"] > 0:
                network, state = folder.load_newest(self.output, state)
                said = f"resuming {self.output} after epoch {state['epoch']} of {recipe.epochs}"
            elif trunk is not None:
                network, said = growth.grow(trunk, settings, images, group)
            else:
                with user_errors(), assembly.dtype_policy(recipe.dtype_policy):
                    schedule = learning_rate_schedule(recipe, steps)
                    network, said = growth.start(settings, images, group)
                    assembly.compile_network(network, recipe, schedule, settings.seed)
            if said is not None and group.is_main:
                print(said, file=sys.stderr)
            group.prepare(network)
        return network, state

    def _fit(
        self,
        group: distribution.Group,
        network: keras.Model,
        batches: data.Batches,
        evaluated: tuple[np.ndarray, np.ndarray],
        epoch: int,
        state: dict[str, Any],
    ) -> None:
        """Trains the network from `epoch` to the end, from the checkpoint of `state` if any."""
        settings, recipe = self.settings, self.settings.recipe
        last = settings.last_epoch
        images, labels = evaluated
        targets = labels
        if recipe.soft_labels:
            targets = np.eye(batches.num_classes, dtype="float32")[labels]
        mine = _part_of(group, images, targets)
        callbacks = [
            SetEpoch(batches, settings.seed),
            DepthOrder(self.output / runs.TIMES if group.is_main else None),
            History(self.output / runs.HISTORY if group.is_main else None, batches.count),
        ]
        if group.metrics_are_local:
            share = float(mine[2].sum()) / len(images) if len(mine) == 3 else 1.0
            callbacks.insert(0, AverageLogs(group, share * group.processes))
        if group.is_main:
            callbacks.append(Checkpoint(self.output, group, state if state["epoch"] else None))
            if self.tensorboard:
                callbacks.append(tensorboard_logs(self.output / runs.TENSORBOARD))
        verbose = self.verbose if group.is_main else 0
        if verbose == "auto":
            verbose = 1 if sys.stdout.isatty() else 2
        training_data = for_fit(batches)
        if self.machine.on_device:
            # Builds the metrics, which Keras would build from a batch of images in `fit`.
            first = slice(EVALUATION_BATCH)
            network.evaluate(images[first], targets[first], verbose=0)
            training_data = train_on_device(network, batches)
        every = settings.eval_every
        with group.scope():
            network.fit(
                training_data,
                epochs=last,
                initial_epoch=epoch,
                shuffle=False,  # `batches` shuffles; Keras would add an order no seed can repeat.
                validation_data=mine,
                validation_batch_size=_evaluation_batch(group),
                validation_freq=sorted({*range(every, last, every), last}),
                callbacks=callbacks,
                verbose=verbose,
            )


def evaluate_weights(
    run_dir: str | Path, weights: str | Path, *, data_dir: str | Path | None = None
) -> Evaluation:
    """Measures a weight file as a finished run measured its own.

    Args:
        run_dir: The run folder, which says what the network is and what it is evaluated on.
        weights: A `.weights.h5` file, or the `.weights.json` index of shards.
        data_dir: As in `train`.

    Returns:
        An `Evaluation`.

    Raises:
        UserError: If the folder holds no run, or the data cannot be loaded.
        ValueError: If the weights are missing, damaged, or of another network.

    Example:

    ```python
    evaluate_weights("runs/a", "runs/a/final.weights.h5", data_dir="data").error
    ```
    """
    config = files.read_json(Path(run_dir) / runs.CONFIG, "config")
    if config is None:
        raise UserError(f"A run folder must hold a {runs.CONFIG}. Received: {run_dir}")
    with user_errors():
        settings = RunSettings.from_dict(config)
        network = _network_of(config)
    _, (images, labels), _ = assembly.load_data(
        settings.dataset, data_dir, settings.holdout, settings.limit
    )
    registry.load(network, weights)
    return _evaluate(network, settings.dataset, images, labels)


def _network_of(config: dict[str, Any]) -> keras.Model:
    """The network of a run in float32, with random weights, from what its `config.json` holds."""
    settings = RunSettings.from_dict(config)
    with assembly.dtype_policy("float32"):
        return assembly.build_network(
            settings.model,
            settings.recipe,
            dataset=settings.dataset,
            normalization=runs.normalization(config),
        )


def _evaluate(network: keras.Model, dataset: str, images, labels) -> Evaluation:
    groups = data.superclasses(dataset)
    return evaluate(
        network, images, labels, EVALUATION_BATCH, from_logits=True, superclasses=groups
    )


def _part_of(group: distribution.Group, images, targets) -> tuple[np.ndarray, ...]:
    """The evaluation images of one process, those that only fill up a batch without weight."""
    if group.devices == 1:
        return images, targets
    count = -(-len(images) // group.devices) * group.devices
    size = count // group.processes
    mine = np.arange(group.process * size, (group.process + 1) * size)
    weights = (mine < len(images)).astype("float32")
    return images[mine % len(images)], targets[mine % len(images)], weights


def _evaluation_batch(group: distribution.Group) -> int:
    """Evaluation images that one process takes at a time."""
    return max(EVALUATION_BATCH // group.devices, 1) * group.devices // group.processes
