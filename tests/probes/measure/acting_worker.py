"""Run by test_acting_in_training.py under torchrun: FSDP2, where the injection begins to act differently everywhere."""

from __future__ import annotations

import sys
from pathlib import Path

import loopscope
import torch
import torch.distributed as dist
from loopscope.models import build
from loopscope.probes.schedule import Preset, every
from torch.distributed.fsdp import fully_shard

BEFORE, STEPS = 6, 14


def train(path: Path, change: bool) -> None:
    torch.manual_seed(0)
    model = build("demo", injection="concatenation")
    fully_shard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    preset = Preset("often", rows=every(1), spectrum=every(1), probe_batch=every(2))
    with loopscope.attach(model, path, preset=preset) as probe:
        for step in range(STEPS):
            if change and step == BEFORE:
                model.injection.register_forward_hook(lambda module, args, output: 2 * output)
            batch = torch.randint(0, 256, (2, 16), generator=torch.Generator().manual_seed(10 * step + dist.get_rank()))
            loss = model(batch, num_loops=3).logsumexp(-1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            probe.step(loss=loss)


dist.init_process_group("gloo")
train(Path(sys.argv[1]) / "same.h5", change=False)
train(Path(sys.argv[1]) / "changed.h5", change=True)
dist.destroy_process_group()
