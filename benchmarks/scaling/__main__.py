"""The command `python -m benchmarks.scaling`."""

import argparse
import sys

from benchmarks import harness
from benchmarks.scaling import training_step
from benchmarks.scaling.all_reduce import measure_all_reduce
from benchmarks.scaling.estimates import IMAGES, estimate
from benchmarks.scaling.tables import DEVICES, HEAD, cells
from mf_zoo import markdown

MODELS = ("MFResNet20", "MFResNet56", "MFResNeXt29_32x4d")


def print_estimates(options: argparse.Namespace) -> None:
    """Prints what `--estimate` asks for."""
    found = training_step.figures(training_step.build(options.estimate, 32, "float32"))
    network = {key: found[key] for key in ("parameters", "normalizations", "channels")}
    if options.local_statistics:
        network |= {"normalizations": 0, "channels": 0}
    pairs = (options.bandwidth, options.latency)
    links = [values * len(options.devices) if len(values) == 1 else values for values in pairs]
    if any(len(values) != len(options.devices) for values in links):
        raise SystemExit(
            "`--bandwidth` and `--latency` must be one number or one for each of --devices. "
            f"Received: {len(pairs[0])} and {len(pairs[1])} for {len(options.devices)}"
        )
    rows = []
    for devices, bandwidth, latency in zip(options.devices, *links, strict=True):
        try:
            row = estimate(
                options.images_per_second,
                devices,
                batch=options.global_batch or devices * options.batch,
                bandwidth=bandwidth,
                latency=latency,
                overlap=options.overlap,
                **network,
            )
        except ValueError as error:
            raise SystemExit(str(error)) from error
        rows.append(cells(row, options.images))
    print(markdown.table(HEAD, rows))


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = harness.parser("A training step at ImageNet's size, and many devices.", 3, 1, batch=4)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--input-size", type=harness.positive, default=224, help="pixels a side")
    parser.add_argument(
        "--dtype-policy", default="float32", choices=["float32", "mixed_bfloat16", "mixed_float16"]
    )
    parser.add_argument(
        "--processes", type=int, default=2, help="that add up gradients; 0 to leave that out"
    )
    group = parser.add_argument_group("estimates, from --batch images on each device")
    group.add_argument("--estimate", metavar="MODEL", help="measure nothing, print a table")
    group.add_argument("--images-per-second", type=float, metavar="R", help="of one device")
    group.add_argument("--devices", type=harness.positive, nargs="+", default=list(DEVICES))
    group.add_argument("--global-batch", type=harness.positive, help="instead of --batch for each")
    group.add_argument(
        "--bandwidth", type=float, nargs="+", metavar="B", help="bytes/s, for all or each number"
    )
    group.add_argument(
        "--latency", type=float, nargs="+", default=[0.0], metavar="S", help="seconds, likewise"
    )
    group.add_argument(
        "--overlap", type=float, default=0.0, help="part of the backward pass that hides gradients"
    )
    group.add_argument(
        "--local-statistics", action="store_true", help="BatchNormalization by each device alone"
    )
    group.add_argument("--images", type=harness.positive, default=IMAGES, help="in an epoch")
    options = parser.parse_args(arguments)
    harness.quiet()
    if options.estimate is not None:
        if options.images_per_second is None or options.bandwidth is None:
            parser.error("--estimate needs --images-per-second and --bandwidth")
        print_estimates(options)
        return 0

    harness.limit_threads(options.threads)
    import keras

    keras.utils.set_random_seed(0)
    shared = harness.circumstances(options.batch, options.threads)
    output = options.output or harness.RESULTS / f"scaling-{shared['backend']}.csv"
    print(", ".join(f"{name} {value}" for name, value in shared.items()), flush=True)
    rows = []
    for model in options.models:
        harness.say(model)
        rows.append(
            training_step.measure(
                model,
                options.dtype_policy,
                options.input_size,
                options.batch,
                options.rounds,
                options.steps,
            )
        )
        harness.write_csv(output, rows, shared)
        print(
            f"{model}: {rows[-1].images_per_second:.3g} images/s, "
            f"{rows[-1].operations_per_second / 1e9:.3g} G operations/s",
            flush=True,
        )
    if rows:
        print(f"written to {output}")
    if options.processes > 1:
        harness.say(f"{options.processes} processes add up")
        sums = measure_all_reduce(options.processes)
        shared = harness.circumstances(0, options.threads, "torch")
        del shared["batch"], shared["backend"]
        path = output.with_name(f"all_reduce-{sums[0].library}.csv")
        harness.write_csv(path, sums, shared)
        for row in sums:
            print(f"{row.bytes:>12,} bytes  {1000 * row.seconds:.3g} ms")
        print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
