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
  step than the others. Each answer therefore names the step and how many forwards the rank has begun: where all agree,
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

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import Tensor, nn

from ...runfile.rank_names import run_path
from ..notices import Notices
from .internals import default_store
from .sharded import gathered, is_sharded, is_spread

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

PATIENCE = 60.0  # seconds: hosts may be a step ahead of one that writes a checkpoint, and lose nothing by the wait
PATIENCE_AT_END = 10.0  # for the last pass: a probe closed on one rank alone holds up the training of the others
_YES = "yes"

_ATTACHED: Counter[str] = Counter()  # how often this process has attached with a path: the number is part of the key


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
            self._store = default_store()
            self._store.add(self._key, 1)
        except Exception as error:  # without the store nothing is known of the others
            self.apart = f"the other ranks cannot be asked: {error!r}"

    def agree(self, what: str) -> bool:
        """Return whether all ranks are here to do the same thing; what takes them all may then be begun, at once.

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
        """Let the others know that this rank comes to no further meeting; again it changes nothing."""
        if self.apart:
            return
        self.apart = why
        if self._store is not None:
            with suppress(Exception):  # a store that is gone: so is the training
                self._answer(self._store, f"rank {self._rank} {why}")

    def _meet(self, store: Store, what: str) -> str:
        """Hold one meeting and return its answer."""
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
        """Return the answer that stands: what is proposed here, unless another was first."""
        return str(store.compare_set(self._of_meeting("answer"), "", proposed).decode())

    def _of_meeting(self, name: str, back: int = 0) -> str:
        return f"{self._key}/{self._meetings - back}/{name}"

    def _forget_last(self, store: Store) -> None:
        """Free what the meeting before left in the store; all ranks are in this one, so nobody reads it any more."""
        for name in ("what", "here", "answer") if self._meetings else ():
            with suppress(Exception):  # not every store can, and a yes must remain one
                store.delete_key(self._of_meeting(name, back=1))


class Together:
    """What takes all ranks where parameters are sharded, and is left out where they are apart.

    Args:
        model: The user's module, unwrapped.
        path: The run file, this rank's.
        notices: Takes the message that ranks are apart.

    Attributes:
        model: As above.
        group: The ranks.
        sharded: Whether there is anything that takes all ranks; None until the first step, because a model may be
            sharded after a probe was attached to it.
    """

    def __init__(self, model: nn.Module, path: Path, notices: Notices) -> None:
        self.group = Group(path)
        self.sharded: bool | None = None
        self.model, self._notices = model, notices

    def begin(self, preset: str, step: int, forwards: int) -> None:
        """Let ranks that differ from the start know now, not when something is due on one of them only."""
        if self.sharded is None:
            self.sharded = is_sharded(self.model)
            if self.sharded:
                self.agree(f"begin with preset {preset!r}", step, forwards)

    def agree(self, what: str, step: int, forwards: int) -> bool:
        """Return whether to do now what takes all ranks where parameters are sharded.

        Args:
            what: What this rank is about to do.
            step: Where it is in its training,
            forwards: and in this step.
        """
        if not self.sharded or self.group.apart:
            return self.sharded is False
        if self.group.agree(f"{what} (step {step}, forward {forwards})"):
            return True
        message = f"neither sharded A̅ nor the fixed batch is measured any more: {self.group.apart}"
        self._notices.say(step, "ranks_apart", message)
        return False

    def whole(self, numbers: Mapping[str, Any], step: int, forwards: int) -> dict[str, Any]:
        """Return numbers, spread ones (a gradient norm under FSDP2) gathered or, where ranks are apart, left out."""
        spread = sorted(name for name, number in numbers.items() if isinstance(number, Tensor) and is_spread(number))
        if not spread:
            return dict(numbers)
        if self.agree(f"read {', '.join(spread)}", step, forwards):
            return {name: gathered(number) for name, number in numbers.items()}
        return {name: number for name, number in numbers.items() if name not in spread}

    def leave(self, why: str) -> None:
        """Let ranks that would wait for this one know that it does not come."""
        if self.sharded is not False:
            self.group.leave(why)
