"""Oracles of keras-tuner whose state survives kills, of themselves and of their workers."""

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras_tuner
import numpy as np
from keras_tuner.engine import hyperparameters

from mf_zoo import files
from mf_zoo.errors import UserError, one_line

_RUNNING = "RUNNING"
_DAMAGE = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError)


class _Durable:
    """What the oracles here add to keras-tuner's own.

    **Kills.** State files are renamed into place. A trial that is on disk but not in the oracle's
    state, because the kill came between the two, is made again, the same; one that was finished
    when the kill came is not run a second time.

    **Lost workers.** keras-tuner waits for a worker for ever: for its trial, which only a worker
    of the same name would run again, and then for itself. Here a worker that has not been heard of
    for `worker_timeout` is lost: the next one that asks for work gets its trial, and nobody waits
    for it. While a trial is running somewhere, workers without work wait, in case they are needed.

    Attributes:
        worker_timeout: Seconds; `None` for no workers, and no limit.
        on_trial_end: Called with the oracle and the trial after each trial.
    """

    worker_timeout: float | None = None
    on_trial_end: Callable[[Any, Any], None] | None = None

    def __init__(self, *args: Any, **kwargs: Any):
        self._seen: dict[str, float] = {}  # tuner id -> when it was heard of
        self._ids: set[str] = set()
        super().__init__(*args, **kwargs)

    # --- Kills

    def save(self) -> None:
        files.write_json(Path(self._get_oracle_fname()), self.get_state())

    def _save_trial(self, trial: Any) -> None:
        files.write_json(
            Path(self._get_trial_dir(trial.trial_id)) / "trial.json", trial.get_state()
        )

    def get_state(self) -> dict[str, Any]:
        # keras-tuner saves when a trial has ended and still counts it as ongoing.
        state = super().get_state()
        state["ongoing_trials"] = {
            tuner: trial.trial_id
            for tuner, trial in self.ongoing_trials.items()
            if trial.status == _RUNNING
        }
        return state

    def reload(self) -> None:
        path = Path(self._get_oracle_fname())
        known = (files.read_json(path, "oracle") or {"start_order": []})["start_order"]
        for file in path.parent.glob("trial_*/trial.json"):
            if file.parent.name.removeprefix("trial_") not in known:
                file.unlink()
            else:
                _check_trial(file)
        try:
            super().reload()
            # In the order of their start, in which a Gaussian process sums, and not of their files.
            self.trials = {trial_id: self.trials[trial_id] for trial_id in self.start_order}
        except _DAMAGE as error:
            # Of what only keras-tuner knows of its files. It makes a RuntimeError of a KeyError.
            what = error.__context__ if isinstance(error, RuntimeError) else error
            raise UserError(
                "The state of a search must be whole, and that of this version of keras-tuner. "
                f"Received: {path.parent} with {type(what).__name__}: {one_line(what)}"
            ) from error
        for trial in self.trials.values():
            if trial.trial_id not in self.end_order:
                _forget(trial)

    # --- Trials and workers

    @property
    def tuner_ids(self) -> set[str]:
        """The tuners that have asked for work and not been sent home, but for the lost ones."""
        self._ids.difference_update([tuner for tuner in self._ids if self._lost(tuner)])
        return self._ids

    @tuner_ids.setter
    def tuner_ids(self, ids: set[str]) -> None:
        self._ids = ids

    def _lost(self, tuner: str) -> bool:
        if self.worker_timeout is None:
            return False
        # One that the state on disk names has until the timeout from now on.
        seen = self._seen.setdefault(tuner, time.monotonic())
        return time.monotonic() - seen > self.worker_timeout

    @keras_tuner.synchronized
    def create_trial(self, tuner_id: str) -> Any:
        self._seen[tuner_id] = time.monotonic()
        if tuner_id not in self.ongoing_trials:
            for other in [other for other in self.ongoing_trials if self._lost(other)][:1]:
                self.ongoing_trials[tuner_id] = trial = self.ongoing_trials.pop(other)
                _forget(trial)
                self.tuner_ids.add(tuner_id)
                print(
                    f"trial {trial.trial_id}: {tuner_id} takes it over from {other}, not heard of "
                    f"for {self.worker_timeout:g} s",
                    flush=True,
                )
                self.save()
        trial = super().create_trial(tuner_id)
        if trial.status == "STOPPED" and self.ongoing_trials:
            trial.status = "IDLE"
            self.tuner_ids.add(tuner_id)
        return trial

    def get_trial(self, trial_id: str) -> Any:
        # What a worker asks while it runs the trial, to be heard of: see `Heartbeat`.
        for tuner, trial in self.ongoing_trials.items():
            if trial.trial_id == trial_id:
                self._seen[tuner] = time.monotonic()
        return super().get_trial(trial_id)

    @keras_tuner.synchronized
    def end_trial(self, trial: Any) -> None:
        # A worker thought lost, or one that has outlived its chief, may end a trial that another
        # one has ended, or is running, or that waits to be run again.
        if trial.trial_id not in self.end_order:
            super().end_trial(trial)
            if self.on_trial_end is not None:
                self.on_trial_end(self, self.trials[trial.trial_id])
        if trial.trial_id in self.end_order:
            self._retry_queue = [one for one in self._retry_queue if one != trial.trial_id]
            for tuner, ongoing in list(self.ongoing_trials.items()):
                if ongoing.trial_id == trial.trial_id:
                    del self.ongoing_trials[tuner]


def _check_trial(path: Path) -> None:
    trial = files.read_json(path, "trial")
    if trial is not None and f"trial_{trial['trial_id']}" != path.parent.name:
        raise UserError(
            f"`trial_id` in {path} must be that of its folder. Received: {trial['trial_id']!r}"
        )


def _forget(trial: Any) -> None:
    """Drops what a run that did not end has reported; keras-tuner would keep it."""
    trial.metrics = type(trial.metrics)()


class RandomSearchOracle(_Durable, keras_tuner.oracles.RandomSearchOracle):
    """Values drawn at random."""


class BayesianOptimizationOracle(_Durable, keras_tuner.oracles.BayesianOptimizationOracle):
    """Values where a Gaussian process expects the most.

    The process is fitted anew to all trials for each new one; the points that keras-tuner begins
    to look for its optimum at come from a generator that no file keeps. Here they are a function of
    the seed and the trial.
    """

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        self._random_state = np.random.RandomState([self.seed, int(trial_id)])
        return super().populate_space(trial_id)


class HyperbandOracle(_Durable, keras_tuner.oracles.HyperbandOracle):
    """Many short trials, of which the best are trained on."""


class GridSearchOracle(_Durable, keras_tuner.Oracle):
    """Every combination of values once, the defaults first; ten values of a range of floats.

    keras-tuner's own keeps its place in the grid in memory alone: a search that is reloaded ends
    early, or fails. Here the place is the number of the trial. It supposes a space that is known
    from the first trial on.
    """

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        rest = itertools.islice(self._combinations({}, self.get_space().space), int(trial_id), None)
        values = next(rest, None)
        return {"status": "STOPPED" if values is None else "RUNNING", "values": values}

    def _combinations(self, values: dict[str, Any], space: list) -> Iterator[dict[str, Any]]:
        if not space:
            yield values
            return
        one, *rest = space
        hp = self.get_space()
        hp.values = values
        if not hp.is_active(one):
            yield from self._combinations(values, rest)
            return
        numbers = isinstance(one, (hyperparameters.Float, hyperparameters.Int))
        choices = sorted(one.values) if numbers else list(one.values)
        for value in [one.default, *(value for value in choices if value != one.default)]:
            yield from self._combinations({**values, one.name: value}, rest)


class Heartbeat:
    """Lets the chief know that a worker is alive while it runs a trial.

    Args:
        oracle: The worker's client of the chief's oracle.
        trial_id: The trial.
        interval: Seconds between two signs of life.
    """

    def __init__(self, oracle: Any, trial_id: str, interval: float):
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(oracle, trial_id, interval), daemon=True
        )
        self._thread.start()

    def _run(self, oracle: Any, trial_id: str, interval: float) -> None:
        import grpc

        while not self._stop.wait(interval):
            with contextlib.suppress(grpc.RpcError):  # The next call of the trial itself tells.
                oracle.get_trial(trial_id)

    def stop(self) -> None:
        """Ends it."""
        self._stop.set()


class Tuner(keras_tuner.Hyperband):
    """The tuner of all oracles here: Hyperband's knows how to resume a trial, when asked to.

    A disk that fails is no failure of a trial: it ends the search, which can be resumed.

    Args:
        oracle: One of the oracles here.
        heartbeat: Seconds between signs of life to the chief; `None` if there is no chief, or
            this is it.
        **kwargs: Those of `keras_tuner.Tuner`.
    """

    def __init__(self, oracle: Any, heartbeat: float | None = None, **kwargs: Any):
        self.heartbeat = heartbeat
        self._idle = 0
        self._heart: Heartbeat | None = None
        keras_tuner.Tuner.__init__(self, oracle=oracle, **kwargs)

    def reload(self) -> None:
        # Its own file holds nothing; a kill may have left it half-written.
        if self.heartbeat is None:
            self.oracle.reload()

    def search(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().search(*args, **kwargs)
        except keras_tuner.errors.FatalRuntimeError as error:
            raise UserError(one_line(error)) from error
        except RuntimeError as error:
            if "consecutive failures" not in str(error):
                raise
            raise UserError(
                "The trials that a search begins with must succeed; three in a row failed. "
                "Received: " + str(error).strip().splitlines()[-1]
            ) from error

    def _run_and_update_trial(self, trial: Any, *args: Any, **kwargs: Any) -> None:
        # All of a trial: the network, its training, its checkpoint, keras-tuner's own files.
        try:
            super()._run_and_update_trial(trial, *args, **kwargs)
        except (OSError, RuntimeError, UserError) as error:
            if not any(map(files.is_of_the_disk, (error, error.__cause__))):
                raise
            raise keras_tuner.errors.FatalRuntimeError(
                f"A trial must be able to read and write its files. Received: {one_line(error)}"
            ) from error

    def pre_create_trial(self) -> None:
        # keras-tuner asks again at once when there is nothing to do yet.
        if self._idle:
            time.sleep(0.2)
        self._idle += 1

    def on_trial_begin(self, trial: Any) -> None:
        self._idle = 0
        if self.heartbeat is not None:
            self._heart = Heartbeat(self.oracle, trial.trial_id, self.heartbeat)

    def on_trial_end(self, trial: Any) -> None:
        if self._heart is not None:
            self._heart.stop()
        super().on_trial_end(trial)
