"""Run by test_ranks.py under torchrun: every rank attaches with the same path and trains by itself."""

import contextlib
import sys
from pathlib import Path

import loopscope
import torch
import torch.nn.functional as F
from loopscope.models import build
from loopscope.models.distributed import rank, started
from torch.distributed.fsdp import fully_shard

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


def train_sharded(out, *, attach_first):
    """FSDP2, with the probe attached before or after the parameters are sharded, and hooks of our own beside it."""
    torch.manual_seed(0)
    model = build("demo", injection="concatenation")
    path, norms = out / f"sharded-{attach_first}.h5", []
    probe = loopscope.attach(model, path) if attach_first else None
    fully_shard(model)
    probe = probe or loopscope.attach(model, path)
    model.injection.register_forward_pre_hook(
        lambda module, args: (
            norms[-1].append(args[0].detach().double().norm(dim=-1).mean().item()) if model.training else None
        )
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    radii = []
    with probe:
        for step in range(4):
            norms.append([])
            radii.append(torch.linalg.eigvals(model.injection.a_bar().full_tensor().double()).abs().max().item())
            seed = torch.Generator().manual_seed(100 * step + rank())
            batch = torch.randint(0, 256, (2, 17), generator=seed)
            logits = model(batch[:, :-1], num_loops=3)
            loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            probe.step(loss=loss)
    torch.save({"norms": norms, "radii": radii}, out / f"sharded-{attach_first}-{rank()}.pt")


def train_with_one_probe(out, *, watched):
    """FSDP2 with a probe on rank 0 only, as one might write it, or none: training must neither hang nor change."""
    torch.manual_seed(0)
    model = build("demo", injection="concatenation")
    fully_shard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    probe = loopscope.attach(model, out / "one.h5") if watched and rank() == 0 else contextlib.nullcontext()
    with probe:
        for step in range(12):
            batch = torch.randint(0, 256, (2, 17), generator=torch.Generator().manual_seed(100 * step + rank()))
            loss = F.cross_entropy(model(batch[:, :-1], num_loops=3).flatten(0, 1), batch[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # sharded too
            optimizer.step()
            if watched and rank() == 0:
                probe.step(loss=loss, grad_norm=norm)
    return [parameter.full_tensor() for parameter in model.parameters()]


if __name__ == "__main__":
    out = Path(sys.argv[1])
    with started("cpu"):
        told = train(out, range(STEPS))
        told = told[:4] + train(out, range(4, STEPS + 2), resume=True)  # an older checkpoint
        torch.save(told, out / f"told-{rank()}.pt")
        for attach_first in (True, False):
            train_sharded(out, attach_first=attach_first)
        plain, watched = (train_with_one_probe(out, watched=watched) for watched in (False, True))
        assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))
