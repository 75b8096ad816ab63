"""Run by test_ranks.py under torchrun: a sharded training in which the probe of rank 1 goes its own way at some step.

What comes of the cases is left in files; a case that hangs says where and ends the process.
"""

import faulthandler
import sys
from contextlib import nullcontext
from pathlib import Path

import loopscope
import torch
import torch.nn.functional as F
from loopscope.models import build
from loopscope.models.distributed import rank, started
from loopscope.probes import probe as probe_module
from torch.distributed.fsdp import FSDPModule, fully_shard

STEPS = 12  # the fixed batch is due after steps 0 and 10 and at the end
APART = 4
SECONDS = 30  # of a case; they take about one


class Failure(Exception):
    """What the probe of rank 1 fails with."""


def fail(*args, **kwargs):
    raise Failure("on purpose")


def fail_in_step(probe, model):
    probe._sender.send_step = fail


def fail_in_rows(probe, model):
    probe._watch.tap.sums.device_rows = fail


def close(probe, model):
    probe.close()


def leave_by_exception(probe, model):
    probe.__exit__(Failure, Failure(), None)


def stay_away(probe, model):
    probe.step = lambda **numbers: None


def fail_in_pass(probe, model):
    """The model itself, behind the gathering of its parameters: it is sharded as a whole."""
    model.core[0].register_forward_pre_hook(lambda module, args: None if model.training else fail())


def nothing(probe, model):
    """The ranks stay together."""


CASES = [nothing, fail_in_step, fail_in_rows, close, leave_by_exception, stay_away]
if hasattr(FSDPModule, "reset_iter_state"):
    CASES.append(fail_in_pass)


def train(path, go_apart=nothing, *, watched=True, numbers=False, **options):
    """Losses and parameters of a training; rank 1 goes apart before step `APART`, or counts otherwise all along."""
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    patience = probe_module.PATIENCE_AT_END = 1.0 if go_apart in (close, stay_away) else 20.0  # for a busy machine
    torch.manual_seed(0)
    model = build("demo", injection="concatenation")
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    with loopscope.attach(model, path, **options) if watched else nullcontext() as probe:
        if watched:
            probe._together.group.patience = patience
        for step in range(STEPS):
            if watched and rank() == 1 and step == APART:
                go_apart(probe, model)
            batch = torch.randint(0, 256, (2, 17), generator=torch.Generator().manual_seed(100 * step + rank()))
            loss = F.cross_entropy(model(batch[:, :-1], num_loops=3).flatten(0, 1), batch[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # sharded too
            optimizer.step()
            losses.append(loss.item())
            if watched:
                probe.step(step=step + 3 * rank() if numbers else None, loss=loss, grad_norm=norm)
    faulthandler.cancel_dump_traceback_later()
    return losses, [parameter.full_tensor() for parameter in model.parameters()]


def compare(plain, out, name, **options):
    """Trains with probes and leaves behind whether that was the same training."""
    losses, parameters = train(out / f"{name}.h5", **options)
    same = losses == plain[0] and all(torch.equal(a, b) for a, b in zip(plain[1], parameters, strict=True))
    torch.save(same, out / f"{name}-{rank()}.pt")


if __name__ == "__main__":
    out, chosen = Path(sys.argv[1]), sys.argv[2:]
    with started("cpu"):
        plain = train(out, watched=False)
        for case in CASES:
            if not chosen or case.__name__ in chosen:
                compare(plain, out, case.__name__, go_apart=case)
        if not chosen or "numbers" in chosen:
            compare(plain, out, "numbers", numbers=True)
        if not chosen or "resume" in chosen:  # the file of rank 1 ends earlier
            train(out / "resume.h5", fail_in_step)
            compare(plain, out, "resume", resume=True)
