"""Run by test_ranks.py under torchrun: every rank attaches with the same path and trains by itself."""

import sys
from pathlib import Path

import loopscope
import torch
import torch.nn.functional as F
from loopscope.models import build
from loopscope.models.distributed import rank, started

STEPS = 6


class Rows:
    """A mirror that says which rank it hears."""

    def __init__(self, out):
        self.out = out

    def write(self, step, values):
        (self.out / f"mirror-{rank()}").touch()

    def close(self):
        pass


def train(out, steps, **options):
    torch.manual_seed(0)
    model = torch.nn.parallel.DistributedDataParallel(build("demo"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    told = []
    with loopscope.attach(model, out / "a.h5", mirrors=[Rows(out)], **options) as probe:
        for step in steps:
            seed = torch.Generator().manual_seed(100 * step + rank())
            batch = torch.randint(0, 256, (2 + rank(), 17), generator=seed)
            logits = model(batch[:, :-1], num_loops=2 + rank() + step % 2)
            loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            probe.step(step=step, loss=loss, lr=0.01)
            told.append(loss.item())
    return told


if __name__ == "__main__":
    out = Path(sys.argv[1])
    with started("cpu"):
        told = train(out, range(STEPS))
        told = told[:4] + train(out, range(4, STEPS + 2), resume=True)  # an older checkpoint
        torch.save(told, out / f"told-{rank()}.pt")
