"""What the ranks of a distributed training agree on before anything that takes all of them.

Reading a sharded parameter, and running a sharded model beside training, are collectives: a rank that begins one while
another does not come waits for ever, and the training with it. So right before each of them all ranks meet in the store
that ``torch.distributed`` keeps for them. Each says what it is about to do, and they do it only if all say the same.

Why nobody waits for ever:

- **One answer for all.** The answer to a meeting is written by compare-and-set: the first proposal stands, and every
  rank obeys what it finds. Yes is proposed only by the rank that arrives last of all, and only if all said the same.
  Where there is a yes, every rank is inside of `Group.agree` and the collective is the next thing it does: no code lies
  between in which it could fail, close or go elsewhere, and nothing is promised ahead of time.
- **At the same place.** On CUDA the host does not wait for collectives, so a rank could come to a meeting from another
  step than the others. What is said therefore names the step and how many forwards the rank has begun: where all agree,
  the same collectives of training lie behind all of them.
- **Who is known to be gone is not waited for.** A probe that fails or is closed answers the meeting to come, or the one
  under way, with no. A rank that stays away with its probe alive is waited for `PATIENCE` seconds, and one that closes
  its probe waits `PATIENCE_AT_END` for the others to run the fixed batch a last time. Both happen once: the first no,
  whatever its reason, is the last meeting.

A meeting is four round trips to the store, under a millisecond within one machine, and the wait for the host that comes
last. The device is not waited for. Where nothing is sharded there are no meetings.

Not covered: a process that dies, or a store that fails, between a yes and the collective; the backend then ends the
training as it does without a probe. A model that raises in a pass of the fixed batch on one rank only: where it is
sharded as a whole, its parameters are gathered by then and training goes on (if torch has ``reset_iter_state``), but
where blocks are sharded one by one, the others wait for that rank's share of the next block until the backend gives up.
And a ``LoopSite`` whose ``a_bar`` communicates by itself, as a slice along the sharded dimension does: `attach` calls
it without asking anybody.
"""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import torch.distributed as dist
from torch import nn

from ...runfile.rank_names import run_path

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

PATIENCE = 60.0  # seconds: hosts may be a step ahead of one that writes a checkpoint, and lose nothing by the wait
PATIENCE_AT_END = 10.0  # for the last pass: a probe closed on one rank alone holds up the training of the others
_YES = "yes"

_ATTACHED: Counter[str] = Counter()  # how often this process has attached with a path: the number is part of the key


def is_sharded(model: nn.Module) -> bool:
    """Whether parameters are spread over the ranks (FSDP, tensor parallelism), at any moment of training.

    >>> is_sharded(nn.Linear(2, 2))
    False
    """
    if any(hasattr(parameter, "full_tensor") for parameter in model.parameters()):
        return True
    fsdp = sys.modules.get("torch.distributed.fsdp")  # half a second to import, and nothing is sharded without it
    kinds = () if fsdp is None else (fsdp.FSDPModule, fsdp.FullyShardedDataParallel)
    return any(isinstance(module, kinds) for module in model.modules())  # gathered just now, perhaps


class Group:
    """The ranks that record one run, as far as they have to agree.

    Making one tells the other ranks that this one has attached.

    Args:
        path: The run file, this rank's.

    Attributes:
        apart: Why the ranks agree on nothing any more; empty as long as they do.
        patience: Seconds to wait for the others in a meeting.

    >>> group = Group(Path("a.h5"))  # one process agrees with itself
    >>> group.agree("read a_bar")
    True
    >>> group.leave("closed")
    >>> group.agree("read a_bar"), group.apart
    (False, 'closed')
    """

    def __init__(self, path: Path) -> None:
        self.apart = ""
        self.patience = PATIENCE
        self._meetings = 0
        self._store: Store | None = None
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return
        name = run_path(path).name
        _ATTACHED[name] += 1
        self._rank, self._world = dist.get_rank(), dist.get_world_size()
        self._key = f"loopscope/{name}/{_ATTACHED[name]}"
        try:
            self._store = dist.distributed_c10d._get_default_store()
            self._store.add(self._key, 1)
        except Exception as error:  # a private call of torch's: without it nothing is known of the others
            self.apart = f"the other ranks cannot be asked: {error!r}"

    def agree(self, what: str) -> bool:
        """Whether all ranks are here to do the same thing; what takes them all may then be begun, at once.

        Args:
            what: What this rank is about to do, and where in its training.
        """
        if self.apart or self._store is None:
            return not self.apart
        try:
            answer = self._meet(self._store, what)
        except Exception as error:
            answer = f"the store of torch.distributed fails: {error!r}"
        self._meetings += 1
        if answer != _YES:
            self.apart = answer
        return not self.apart

    def leave(self, why: str) -> None:
        """Lets the others know that this rank comes to no further meeting; harmless the second time."""
        if self.apart:
            return
        self.apart = why
        if self._store is not None:
            with suppress(Exception):  # a store that is gone: so is the training
                self._answer(self._store, f"rank {self._rank} {why}")

    def _meet(self, store: Store, what: str) -> str:
        """One meeting: the answer to it."""
        # A first step has taken all ranks, so each that ever will has attached by now.
        if not self._meetings and store.add(self._key, 0) < self._world:
            return self._answer(store, "not every rank carries a probe; call attach on each, with the same path")
        said = store.compare_set(self._of_meeting("what"), "", what).decode()
        if said != what:
            return self._answer(store, f"rank {self._rank} was about to {what}, another to {said}")
        if store.add(self._of_meeting("here"), 1) == self._world:
            answer = self._answer(store, _YES)
            self._forget_last(store)
            return answer
        with suppress(RuntimeError):  # the time is up
            store.wait([self._of_meeting("answer")], timedelta(seconds=self.patience))
        return self._answer(store, f"rank {self._rank} waited {self.patience:g} s for others to {what}")

    def _answer(self, store: Store, proposed: str) -> str:
        """The answer that stands: what is proposed here, unless another was first."""
        return str(store.compare_set(self._of_meeting("answer"), "", proposed).decode())

    def _of_meeting(self, name: str, back: int = 0) -> str:
        return f"{self._key}/{self._meetings - back}/{name}"

    def _forget_last(self, store: Store) -> None:
        """Frees what the meeting before left in the store; all ranks are in this one, so nobody reads it any more."""
        for name in ("what", "here", "answer") if self._meetings else ():
            with suppress(Exception):  # not every store can, and a yes must remain one
                store.delete_key(self._of_meeting(name, back=1))
