"""Whether every process of a distributed training carries a probe.

Reading a sharded parameter, and running the model beside training, takes all processes: one that waits for others which
do not come waits for ever, and the training with it. So each process that attaches says so in the store that
``torch.distributed`` keeps for all of them, and nothing is gathered before all have been heard of.

Not covered: a probe that fails on one rank of a sharded training while the others go on.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from .ranks import run_path

log = logging.getLogger("loopscope")

_ATTACHED: Counter[str] = Counter()  # how often this process has attached with a path: the number is part of the key


def announce(path: Path) -> Callable[[], bool]:
    """Tells the other processes that this one has attached.

    Args:
        path: The run file, this rank's.

    Returns:
        The question whether all processes have; it asks the store, a millisecond at most, and waits for nobody.

    >>> announce(Path("a.h5"))()
    True
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return lambda: True
    name, world = run_path(path).name, dist.get_world_size()
    _ATTACHED[name] += 1
    key = f"loopscope/{name}/{_ATTACHED[name]}"
    try:
        store = dist.distributed_c10d._get_default_store()
        store.add(key, 1)
    except Exception as error:  # a private call of torch's: without it nothing is known of the others
        log.warning("loopscope: sharded parameters are not read, for the other ranks cannot be asked: %r", error)
        return lambda: False
    return lambda: int(store.add(key, 0)) >= world
