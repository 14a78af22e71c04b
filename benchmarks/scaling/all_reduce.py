"""Adding up numbers of several processes: measured, and what a link has to be like for that.

`python -m benchmarks.scaling.all_reduce JOB` is one of the processes.
"""

import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

WORKER = [sys.executable, "-m", "benchmarks.scaling.all_reduce"]
# Bytes: from a layer's statistics to ResNeXt's gradients and beyond.
SIZES = (256, 4096, 65536, 2**20, 2**22, 2**24, 2**26)


@dataclass(frozen=True)
class AllReduce:
    """How long adding up numbers of several processes takes: a row of the CSV file.

    Attributes:
        library: What did it.
        processes: Number of processes.
        bytes: Of each process.
        seconds: The median.
    """

    library: str
    processes: int
    bytes: int
    seconds: float


def all_reduce_seconds(bytes_: float, devices: int, bandwidth: float, latency: float) -> float:
    """Seconds for adding up so many bytes of each device, the sum being on all of them.

    By recursive halving and doubling, `2 log2(p)` messages one after the other, which carry
    `2 (p - 1) / p` of the bytes; additions are taken to cost nothing.

    Args:
        bytes_: Bytes on each device.
        devices: Their number `p`.
        bandwidth: Bytes a second that a device sends, while it receives as many.
        latency: Seconds of an empty message.

    Source: Thakur, Rabenseifner, Gropp, *Optimization of Collective Communication Operations in
    MPICH*, IJHPCA 2005, section 4.5.
    """
    messages = 2 * math.ceil(math.log2(devices))
    return messages * latency + 2 * (devices - 1) / devices * bytes_ / bandwidth


def worker(argument: str) -> None:
    """One of the processes that add up: the first prints seconds by number of bytes."""
    import torch
    import torch.distributed as group

    job = json.loads(argument)
    rank, processes = job["rank"], job["processes"]
    several = torch.cuda.device_count() >= processes
    device = torch.device("cuda", rank) if several else torch.device("cpu")
    library = "nccl" if several else "gloo"
    rendezvous = Path(job["folder"], "rendezvous").as_uri()
    group.init_process_group(library, init_method=rendezvous, rank=rank, world_size=processes)
    found = []
    for size in job["sizes"]:
        values = torch.full((size // 4,), float(rank + 1), device=device)
        group.all_reduce(values)
        expected = processes * (processes + 1) / 2
        if values.min().item() != expected or values.max().item() != expected:
            raise RuntimeError(f"The sum must be {expected}. Received: {values}")
        values.zero_()
        taken = []
        for _ in range(job["repeats"]):
            group.barrier()
            start = time.perf_counter()
            group.all_reduce(values)
            values[0].item()  # waits for the device
            taken.append(time.perf_counter() - start)
        found.append(statistics.median(taken))
    if rank == 0:
        print(json.dumps({"library": library, "seconds": found}))
    group.destroy_process_group()


def measure_all_reduce(
    processes: int, sizes: Sequence[int] = SIZES, repeats: int = 20
) -> list[AllReduce]:
    """Measures adding up between processes of this machine: by NCCL if each has a GPU, else gloo.

    Raises:
        RuntimeError: If a process fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        job = {"processes": processes, "sizes": sizes, "repeats": repeats, "folder": folder}
        started = [
            subprocess.Popen(
                [*WORKER, json.dumps({**job, "rank": rank})],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(processes)
        ]
        try:
            outputs = [process.communicate(timeout=600) for process in started]
        finally:
            for process in started:
                process.kill()
    for process, (_, errors) in zip(started, outputs, strict=True):
        if process.returncode:
            raise RuntimeError(f"{errors.strip().splitlines()[-1:]}. Received: {job}")
    found = json.loads(outputs[0][0].splitlines()[-1])
    return [
        AllReduce(found["library"], processes, size, seconds)
        for size, seconds in zip(sizes, found["seconds"], strict=True)
    ]


def link(rows: Sequence[AllReduce]) -> tuple[float, float]:
    """Bandwidth in bytes a second and latency in seconds that `all_reduce_seconds` has to be given.

    From the smallest and the largest of the measurements, which it then meets.
    """
    small, large = (function(rows, key=lambda row: row.bytes) for function in (min, max))
    p = small.processes
    bandwidth = 2 * (p - 1) / p * (large.bytes - small.bytes) / (large.seconds - small.seconds)
    without_latency = all_reduce_seconds(small.bytes, p, bandwidth, 0)
    return bandwidth, (small.seconds - without_latency) / (2 * math.ceil(math.log2(p)))


if __name__ == "__main__":
    worker(sys.argv[1])
