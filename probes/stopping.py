"""Ends a training when a rule says so: on all ranks, in the same step.

A rule stops nothing unless its ``actions`` hold ``stop``. Then the ranks of a distributed training tell each other in
every step whether one of theirs has fired: one number, reduced by MAX on the CPU. It is waited for one step later, when
it has long arrived, because the ranks have met for their gradients meanwhile. So all of them raise in the same step,
and none is left alone in a collective of the training. Where no rule may stop there is nothing of this.

Not covered: ranks that take different numbers of steps. One that waits for another longer than `PATIENCE` goes on
alone, and says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist

from ..rules.rule_files import Rule
from ..runfile.layout import Event
from .measure.group import Group
from .notices import Notices, one_line

PATIENCE: Final = 60.0  # seconds
_RULES: Final = 1 << 12  # more than a file can have, the shipped ones with it


class LoopUnstable(RuntimeError):
    """A rule has fired that stops the training.

    Attributes:
        rule: Its id.
        step: The step in which the training was stopped.
        rank: The rank on which it fired.
    """

    def __init__(self, message: str, rule: str, step: int, rank: int) -> None:
        super().__init__(message)
        self.rule, self.step, self.rank = rule, step, rank


class Stopping:
    """Decides in every step whether the training goes on.

    Args:
        rules: The rules of the run.
        path: The run file, this rank's.
        notices: Take the warning that ranks are apart.
    """

    def __init__(self, rules: Iterable[Rule], path: Path, notices: Notices) -> None:
        self._ids = tuple(sorted(rule.id for rule in rules if "stop" in rule.actions))
        self._notices = notices
        self._group = Group(path.with_name(f"stop-{path.name}")) if self._ids else None
        self._together: bool | None = None  # whether the ranks decide together; None before the first step
        self._process_group: Any = None
        self._flag = torch.zeros(1, dtype=torch.int64)
        self._work: Any = None

    def check(self, step: int, fired: Event | None) -> LoopUnstable | None:
        """Return what is to be raised now, on every rank the same; None where the training goes on.

        Args:
            step: The step that is done.
            fired: A rule that stops and has fired on this rank.
        """
        if self._group is None:
            return None
        if self._together is None:
            self._meet(step)
        if not self._together:
            return None if fired is None else self._stopped(step, fired.kind, _rank(), fired)
        try:
            return self._reduce(step, fired)
        except Exception as error:
            self._alone(step, one_line(error))
            return self.check(step, fired)

    def _meet(self, step: int) -> None:
        """Find out, in the first step, whether all ranks may be stopped by the same rules."""
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if not several or self._group is None:
            self._together = False
            return
        if self._group.agree(f"stop by {', '.join(self._ids)}"):
            self._process_group = dist.new_group(backend="gloo", timeout=timedelta(seconds=PATIENCE))
            self._together = True
        else:
            self._alone(step, self._group.apart)

    def _alone(self, step: int, why: str) -> None:
        """Decide for this rank only from here on."""
        self._together = False
        self._notices.say(step, "ranks_apart", f"rules stop this rank alone: {why}", cause="stop")

    def _reduce(self, step: int, fired: Event | None) -> LoopUnstable | None:
        """Take the answer of the step before, and ask for that of this one."""
        answer = 0
        if self._work is not None:
            self._work.wait(timedelta(seconds=PATIENCE))
            answer = int(self._flag[0])
        if answer:
            rank, index = divmod(answer, _RULES)
            own = fired if fired is not None and rank - 1 == _rank() else None
            return self._stopped(step, self._ids[index], rank - 1, own)
        code = 0 if fired is None else (_rank() + 1) * _RULES + self._ids.index(fired.kind)
        self._flag = torch.tensor([code], dtype=torch.int64)
        self._work = dist.all_reduce(self._flag, dist.ReduceOp.MAX, group=self._process_group, async_op=True)
        return None

    def _stopped(self, step: int, rule: str, rank: int, event: Event | None) -> LoopUnstable:
        where = f" of rank {rank}" if dist.is_available() and dist.is_initialized() else ""
        why = "" if event is None else f": {event.message} (step {event.step})"
        return LoopUnstable(f"interrupted by rule {rule}{where}{why}", rule, step, rank)


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
