"""Two ranks train; the loss of one is NaN in step 5; both say what they raised, and in which step."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from loopscope.models import build
from loopscope.probes import LoopUnstable, attach
from torch.nn.parallel import DistributedDataParallel

OUT = Path(sys.argv[1])


def main() -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    model = DistributedDataParallel(build("demo"), find_unused_parameters=True)
    tokens = torch.randint(0, 256, (2, 16))
    told: list[str] = []
    said: dict[str, object] = {"raised": None}
    probe = attach(
        model,
        OUT / "a.h5",
        stop_on=["LS001"] if not (len(sys.argv) > 2 and rank) else [],
        on_alert=lambda event: told.append(event.kind),
    )
    try:
        for step in range(60):
            model(tokens, num_loops=2).logsumexp(-1).mean().backward()
            probe.step(loss=math.nan if rank == 1 and step == 5 else 2.0 + step / 100)
        probe.close()
    except LoopUnstable as error:
        said["raised"] = {"rule": error.rule, "step": error.step, "rank": error.rank, "message": str(error)}
    (OUT / f"{rank}.json").write_text(json.dumps({**said, "told": told}))
    dist.barrier()
    dist.destroy_process_group()


main()
