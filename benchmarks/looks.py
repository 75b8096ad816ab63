"""What a look at a model costs beside the forward that it makes: seconds, and memory on top of the weights.

    python benchmarks/looks.py                 # the preset parcae-140m
    python benchmarks/looks.py --preset demo

A look must not copy the weights. Each kind of look runs in a forked process of its own, so that its memory high-water
mark is its own; the mark of the same forward without a look is taken off.

Not covered: GPUs, whose memory is not this process's.
"""

from __future__ import annotations

import argparse
import os
import resource
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from loopscope.loops.description import describe
from loopscope.loops.neutral import on_the_side
from loopscope.models import build
from loopscope.probes import attach
from torch import nn

TOKENS = torch.zeros(2, 64, dtype=torch.int64)
LOOPS = 16


def forward(model: nn.Module) -> None:
    """Run the model as a pass of the fixed batch does."""
    with torch.no_grad():
        model(TOKENS, num_loops=LOOPS)


def look(model: nn.Module, *, verify: bool) -> None:
    """Run it so that nothing of it is left behind."""
    with on_the_side(model, verify=verify):
        model(TOKENS, num_loops=LOOPS)


def described(model: nn.Module) -> None:
    """Describe its loop."""
    describe(model)


def attached(model: nn.Module) -> None:
    """Attach a probe and close it again."""
    with tempfile.TemporaryDirectory() as folder:
        attach(model, Path(folder) / "a.h5").close()


KINDS: dict[str, Callable[[nn.Module], None]] = {
    "the forward alone": forward,
    "a look": lambda model: look(model, verify=False),
    "the first look, which compares all bits": lambda model: look(model, verify=True),
    "describe": described,
    "attach": attached,
}


def measured(model: nn.Module, kind: Callable[[nn.Module], None]) -> tuple[float, float]:
    """Return the seconds of the second of two runs, and the megabytes that a forked process took for them."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        for parameter in model.parameters():  # memory that this process has not touched is not counted as its own yet
            parameter.detach().sum()
        began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        kind(model)
        start = time.process_time()
        kind(model)
        seconds = time.process_time() - start
        taken = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - began) / 1024
        os.write(writing, struct.pack("dd", seconds, taken))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        seconds, taken = struct.unpack("dd", stream.read())
    os.waitpid(child, 0)
    return seconds, taken


def main() -> None:
    """Print one line for each kind of look."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--preset", default="parcae-140m")
    preset = options.parse_args().preset
    torch.set_num_threads(1)
    model = build(preset).train()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    print(f"{preset}: {sum(p.numel() for p in model.parameters()) / 1e6:.0f}M parameters, {weights / 2**20:.0f} MB")
    for name, kind in KINDS.items():
        seconds, taken = measured(model, kind)
        part = taken * 2**20 / weights
        print(f"{name:42} {seconds:7.3f} s of processor time {taken:7.1f} MB on top, {part:.3f} of the weights")


if __name__ == "__main__":
    main()
