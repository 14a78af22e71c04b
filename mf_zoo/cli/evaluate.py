"""`mf-zoo evaluate`: measures a trained model."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mf_zoo.cli.common import add_data_arguments, add_record_arguments, load_trained
from mf_zoo.errors import UserError, user_errors
from mf_zoo.training.settings import Machine, RunSettings

if TYPE_CHECKING:
    from mf_zoo.training.evaluation import Evaluation


def add_parser(commands: Any) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser("evaluate", help="measure a trained model")
    parser.add_argument("model", metavar="MODEL", help="such as MFResNet20")
    parser.add_argument(
        "--weights",
        required=True,
        metavar="W",
        help="registered name, .weights.h5 file or run folder",
    )
    add_data_arguments(parser)
    add_record_arguments(parser, RunSettings, Machine, only=("dataset", "threads"))
    parser.add_argument("--split", default="test", help="test (default), train, train[45000:] ...")
    parser.add_argument("--limit", type=int, metavar="N", help="use the first N images")
    parser.add_argument("--batch-size", type=int, default=500, metavar="N")
    parser.add_argument("--quadrature", help="rule that the weights were trained with")
    parser.add_argument("--horizon", type=float, help="horizon they were trained with")
    parser.add_argument("--integrator", help="another than they were trained with: heun, ...")
    parser.add_argument(
        "--label-smoothing", type=float, default=0.0, metavar="S", help="of the reported loss"
    )
    parser.add_argument(
        "--predictions", type=Path, metavar="FILE", help="write a CSV row per image"
    )
    parser.add_argument(
        "--calibrate",
        type=int,
        metavar="N",
        help="fit a temperature on the first N images, and measure the others with and without it",
    )
    parser.add_argument(
        "--corruptions",
        nargs="*",
        metavar="NAME",
        help="measure corrupted test images (CIFAR-10-C, CIFAR-100-C) instead: those of the 15 "
        "corruptions of the benchmark, or of the named ones",
    )
    parser.add_argument(
        "--severities", nargs="+", type=int, metavar="S", help="of the corruptions, 1 to 5"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_evaluate)


def _evaluate(options: argparse.Namespace):
    if options.batch_size < 1:
        raise UserError(f"`--batch-size` must be 1 or more. Received: {options.batch_size}")
    if not 0 <= options.label_smoothing < 1:
        raise UserError(
            f"`--label-smoothing` must be in [0, 1). Received: {options.label_smoothing}"
        )
    if options.corruptions is None and options.severities is not None:
        raise UserError("`--severities` needs `--corruptions`. Received: no `--corruptions`")
    if options.corruptions is not None:
        for name, default in {"split": "test", "predictions": None, "calibrate": None}.items():
            if getattr(options, name) != default:
                raise UserError(
                    f"`--corruptions` takes no `--{name}`. Received: {getattr(options, name)}"
                )

    import keras

    from mf_zoo import data, devices
    from mf_zoo.training.evaluation import evaluate

    if options.threads and not devices.limit_threads(options.threads):
        print(f"note: --threads has no effect on {keras.config.backend()}", file=sys.stderr)
    model, dataset = load_trained(
        options.model,
        options.weights,
        options.dataset,
        None,
        quadrature=options.quadrature,
        horizon=options.horizon,
        integrator=options.integrator,
    )
    if options.corruptions is not None:
        _corrupted(options, model, dataset)
        return
    names = data.class_names(dataset)
    with user_errors():
        images, labels = data.load(dataset, options.split, data_dir=options.data_dir)
        images, labels = images[: options.limit], labels[: options.limit]
    measured = {
        "label_smoothing": options.label_smoothing,
        "superclasses": data.superclasses(dataset),
    }
    scores = evaluate(model, images, labels, options.batch_size, from_logits=True, **measured)
    found: dict[str, Any] = {}
    if options.calibrate is not None:
        scores, found = _calibrated(options.calibrate, scores, labels, measured)
        labels = labels[options.calibrate :]
    if options.predictions is not None:
        with user_errors():
            scores.write_predictions(options.predictions, labels, names)
    if options.json:
        about = {"model": options.model, "weights": options.weights, "dataset": dataset}
        about |= {"split": options.split, "backend": keras.config.backend()}
        print(json.dumps({**about, **scores.to_dict(), **found}, indent=2))
        return
    print(f"{options.model}, weights {options.weights}, {dataset} {options.split}")
    print(f"images  {scores.images}")
    print(f"top-1   {scores.top1:.2f} % (error {scores.error:.2f} %)")
    print(f"top-5   {scores.top5:.2f} % (error {scores.top5_error:.2f} %)")
    if scores.coarse_error is not None:
        print(f"coarse  {100 - scores.coarse_error:.2f} % (error {scores.coarse_error:.2f} %)")
    print(f"loss    {scores.loss:.4f}")
    print(f"NLL     {scores.nll:.4f}")
    print(f"ECE     {scores.ece:.2f} %")
    if found:
        print(f"Divided by the temperature {found['temperature']:.4f}, which was fitted on the")
        print(f"first {options.calibrate} images:")
        print(f"NLL     {found['calibrated_nll']:.4f}")
        print(f"ECE     {found['calibrated_ece']:.2f} %")


def _calibrated(
    count: int, scores: "Evaluation", labels: Any, measured: dict[str, Any]
) -> "tuple[Evaluation, dict[str, float]]":
    """The scores of all but the first images, and what a temperature fitted on these changes."""
    from mf_zoo.training.calibration import calibrate

    if not 0 < count < len(labels):
        raise UserError(
            f"`--calibrate` must leave images to measure, of {len(labels)}. Received: {count}"
        )
    temperature, rest, divided = calibrate(scores.log_probabilities, labels, count, **measured)
    return rest, {
        "temperature": temperature,
        "calibrated_nll": divided.nll,
        "calibrated_ece": divided.ece,
    }


def _corrupted(options: argparse.Namespace, model: Any, dataset: str) -> None:
    """Measures corrupted images and prints the errors."""
    import keras

    from mf_zoo import markdown
    from mf_zoo.data.corruptions import CORRUPTIONS, SEVERITIES
    from mf_zoo.training.robustness import evaluate_corruptions

    severities = list(dict.fromkeys(options.severities or SEVERITIES))
    with user_errors():
        found = evaluate_corruptions(
            model,
            dataset,
            options.data_dir,
            options.corruptions or CORRUPTIONS,
            severities,
            options.limit,
            options.batch_size,
            progress=lambda name: print(name, end=" ", file=sys.stderr, flush=True),
        )
    print(file=sys.stderr)
    if options.json:
        about = {"model": options.model, "weights": options.weights, "dataset": dataset}
        about |= {"backend": keras.config.backend(), "images": found.images}
        print(json.dumps({**about, "errors": found.errors, "mean_error": found.mean_error}))
        return
    print(f"{options.model}, weights {options.weights}, {dataset}, corrupted test images")
    print(f"images  {found.images} of each corruption and severity; errors in %")
    rows = [
        [name, *(f"{row[severity]:.2f}" for severity in severities), f"{found.means[name]:.2f}"]
        for name, row in found.errors.items()
    ]
    print(markdown.table(["corruption", *map(str, severities), "mean"], rows))
    print(f"mean    {found.mean_error:.2f} %")
