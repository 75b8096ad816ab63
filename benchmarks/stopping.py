"""What a rule that may stop a training costs two ranks: steps with and without the reduction, side by side.

Both are taken in turns in one process for each rank, so that whatever else the machine does hits both alike. The step
is some matrix products and the reduction of a gradient, in two lengths.

    torchrun --nproc-per-node 2 benchmarks/stopping.py

Not covered: GPUs, and ranks on several machines, where the reduction is a round trip of the network.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from loopscope.probes.notices import Notices
from loopscope.probes.stopping import Stopping
from loopscope.rules.rule_files import load_rules, stopping_on

BLOCK = 20  # steps of one kind in a row
ROUNDS = 30  # pairs of blocks
LENGTHS = {"short": (256, 2), "long": (512, 12)}  # width and number of the products of a step


def main() -> None:
    """Print the cost for each length of a step."""
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{'' if dist.get_rank() == 0 else '.rank1'}.h5"
        notices = Notices(lambda event: None)
        kinds = {name: Stopping(stopping_on(load_rules(), which), path, notices)
                 for name, which in (("without", []), ("with", ["error"]))}  # fmt: skip
        for length, (width, count) in LENGTHS.items():
            compared = [{name: _block(kind, width, count) for name, kind in kinds.items()} for _ in range(ROUNDS)]
            if dist.get_rank() == 0:
                _tell(length, compared)
    dist.destroy_process_group()


def _block(stopping: Stopping, width: int, count: int) -> tuple[float, float]:
    """Return the median seconds of a step, and of the decision in it."""
    weights, gradient = torch.randn(width, width), torch.zeros(200_000)
    steps, decisions = [], []
    for step in range(BLOCK):
        began = time.perf_counter()
        for _ in range(count):
            weights @ weights
        dist.all_reduce(gradient)
        asked = time.perf_counter()
        assert stopping.check(step, None) is None
        ended = time.perf_counter()
        decisions.append(ended - asked)
        steps.append(ended - began)
    return statistics.median(steps), statistics.median(decisions)


def _tell(length: str, compared: list[dict[str, tuple[float, float]]]) -> None:
    """Print one length: the median ratio of neighbouring blocks with its 95 % interval by resampling."""
    ratios = np.array([pair["with"][0] / pair["without"][0] for pair in compared])
    drawn = np.median(np.random.default_rng(0).choice(ratios, (2000, len(ratios))), axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    step = statistics.median(pair["without"][0] for pair in compared)
    own = statistics.median(pair["with"][1] for pair in compared)
    times = f"{np.median(ratios):.3f} times as long ({low:.3f} to {high:.3f})"
    print(f"{length}: a step of {step * 1e3:.2f} ms takes {times}; the decision itself {own * 1e6:.0f} µs")


if __name__ == "__main__":
    main()
