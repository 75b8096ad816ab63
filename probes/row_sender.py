"""From the device to the recorder: the copies of a step are started when it ends and handed over when they arrived.

Nobody waits: a step is sent when its copies begin, and a later step looks whether they are there. In between it is a
`StepOnItsWay`, which knows everything of its row that the host knew and where the rest will arrive.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

from numpy.typing import NDArray
from torch import Tensor

from ..runfile.flights import FlightStep
from ..runfile.layout import TOKEN_MAP
from .measure.fixed_batch import TOKEN_STEPS, Pass
from .measure.inside import InsideCounts
from .measure.transfer import Copy, Transfer
from .measure.variables import VariablePart
from .notices import Notices
from .numbers import Numbers, refuse
from .recorder import Record, Recorder, VariableRecord

TRANSFERS_UNDER_WAY: Final = 64  # copies from the device waiting to arrive before new ones are dropped


@dataclass(frozen=True, slots=True, eq=False)
class LoopPart:
    """What was seen of the loop in one step; tensors are still on the device.

    Args:
        sums: Rows of sums (`LoopSums`).
        counts: Over how many tokens each is.
        rows_cut: Rows that did not fit.
        batches: Hashes of the step's batches.
        matrices: ``a_bar``, ``b_bar``, ``c_out`` as the step's forward used them, where they were due.
        spectrum: Whether the eigenvalues of A̅ are kept.
        norms: Norm of every parameter, where they are due.
        inside: Sums inside the first loop, and gradients at the states; None where they are not due.
        inside_counts: What divides them.
        random: States of the random generators when the step began.
        values: Numbers of the full loop, of evaluations and of backward solves.
        arrays: Arrays of the full loop.
        variables: What was seen of every variable, where they are several.
        disagreement: How far the injection was from A̅ in the step's forward; None where that was not looked at.
        learn: Told of the disagreement once it is here.
    """

    sums: Tensor
    counts: NDArray[Any]
    rows_cut: int
    batches: Tensor
    matrices: Mapping[str, Tensor] = field(default_factory=dict)
    spectrum: bool = False
    norms: Tensor | None = None
    inside: tuple[Tensor, Tensor] | None = None
    inside_counts: InsideCounts | None = None
    random: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    values: Mapping[str, float] = field(default_factory=dict)
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    variables: Sequence[VariablePart] = ()
    disagreement: Tensor | None = None
    learn: Callable[[float], None] | None = None


class OnItsWay(Protocol):
    """A record of which some parts have not arrived yet."""

    def arrived(self) -> Record:
        """Return the whole record, once its transfer is ready."""


@dataclass(frozen=True, slots=True, eq=False)
class LoopOnItsWay:
    """The copies of a `LoopPart`."""

    part: LoopPart
    sums: Copy
    batches: Copy
    matrices: Mapping[str, Copy]
    norms: Copy | None
    inside: tuple[Copy, Copy] | None
    variables: list[Copy]
    disagreement: Copy | None

    @classmethod
    def of(cls, part: LoopPart, transfer: Transfer) -> LoopOnItsWay:
        """Start the copies."""
        return cls(
            part,
            transfer.copy(part.sums, own=True),
            transfer.copy(part.batches),
            {name: transfer.copy(matrix, own=True) for name, matrix in part.matrices.items()},
            None if part.norms is None else transfer.copy(part.norms, own=True),
            None if part.inside is None else (transfer.copy(part.inside[0]), transfer.copy(part.inside[1])),
            [transfer.copy(variable.sums) for variable in part.variables],
            None if part.disagreement is None else transfer.copy(part.disagreement),
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the step's arrays by name."""
        arrays = dict(self.part.arrays)
        if self.inside is not None and self.part.inside_counts is not None:
            arrays |= self.part.inside_counts.norms(self.inside[0].array(), self.inside[1].array())
        return arrays

    def added_to(self, record: Record) -> Record:
        """Return the record with the loop in it."""
        if self.disagreement is not None and self.part.learn is not None:
            self.part.learn(self.disagreement.number())
        norms = None if self.norms is None else self.norms.array()
        return replace(
            record,
            sums=self.sums.array(),
            counts=self.part.counts,
            matrices={name: copy.array() for name, copy in self.matrices.items()},
            spectrum=self.part.spectrum,
            arrays=self.arrays(),
            flight=FlightStep(norms, self.batches.array(), self.part.random),
            rows_cut=self.part.rows_cut,
            variables=[
                VariableRecord(copy.array(), variable.counts, variable.places)
                for copy, variable in zip(self.variables, self.part.variables, strict=True)
            ],
        )


@dataclass(frozen=True, slots=True, eq=False)
class StepOnItsWay:
    """The row of one training step.

    Args:
        known: What the host knew when the step ended.
        numbers: The user's numbers that were on another device.
        loop: What was seen of the loop; None where it is not watched.
    """

    known: Record
    numbers: Mapping[str, Copy]
    loop: LoopOnItsWay | None

    def arrived(self) -> Record:
        """Return the whole record."""
        record = self.known
        if self.numbers:
            values = record.values | {name: copy.number() for name, copy in self.numbers.items()}
            record = replace(record, values=values)
        return record if self.loop is None else self.loop.added_to(record)


@dataclass(frozen=True, slots=True, eq=False)
class PassOnItsWay:
    """The rows of one pass of the fixed batch.

    Args:
        known: What the host knew when the pass was over.
        sums: Its rows of sums.
        token_steps: The step of every token.
        disagreement: How far the injection is from A̅.
        learn: Told of the disagreement once it is here.
    """

    known: Record
    sums: Copy
    token_steps: Copy | None
    disagreement: Copy | None
    learn: Callable[[float], None]

    def arrived(self) -> Record:
        """Return the whole record."""
        if self.disagreement is not None:
            self.learn(self.disagreement.number())
        maps = {} if self.token_steps is None else {TOKEN_MAP: self.token_steps.array()}
        return replace(self.known, sums=self.sums.array(), arrays=maps)


class RowSender:
    """Sends rows from the training thread to the recorder, in order, without waiting for any.

    Args:
        recorder: Who writes them.
        notices: Takes the message that a number cannot be copied.
    """

    def __init__(self, recorder: Recorder, notices: Notices) -> None:
        self._recorder, self._notices = recorder, notices
        self._under_way: deque[tuple[Transfer, OnItsWay]] = deque()

    @property
    def waiting(self) -> int:
        """Return how many rows are not written yet."""
        return len(self._under_way) + self._recorder.waiting

    def send_step(self, step: int, numbers: Numbers, loop: LoopPart | None, began: float) -> None:
        """Start the copies of a step.

        Args:
            step: Its number.
            numbers: What the training loop gave.
            loop: What was seen of the loop, where it is watched.
            began: When `Probe.step` was called, by ``time.perf_counter``.
        """
        transfer = Transfer()
        away: dict[str, Copy] = {}
        for name, tensor in numbers.away.items():
            try:
                away[name] = transfer.copy(tensor)
            except Exception as error:
                refuse(name, error, step, self._notices)
        on_its_way = None if loop is None else LoopOnItsWay.of(loop, transfer)
        transfer.sent()
        measured = {} if loop is None else dict(loop.values)
        values = numbers.here | measured | {"probe_seconds": time.perf_counter() - began}
        self._queue(transfer, StepOnItsWay(Record(step, time.time(), values), away, on_its_way))

    def send_pass(self, step: int, done: Pass, learn: Callable[[float], None]) -> None:
        """Start the copies of a pass of the fixed batch.

        Args:
            step: The step that it was run after.
            done: What it left behind.
            learn: Told how far the injection is from A̅, once that is known.
        """
        transfer = Transfer()
        sums = transfer.copy(done.rows["sums"])
        steps = transfer.copy(done.rows[TOKEN_STEPS]) if TOKEN_STEPS in done.rows else None
        disagreement = None if done.disagreement is None else transfer.copy(done.disagreement)
        transfer.sent()
        known = Record(step, time.time(), counts=done.counts, is_probe=True, rows_cut=done.rows_cut)
        self._queue(transfer, PassOnItsWay(known, sums, steps, disagreement, learn))

    def deliver(self) -> None:
        """Hand over what has arrived, in order.

        Raises:
            Exception: A row cannot be read: its device failed, say. It is dropped; the next call goes on behind it.
        """
        while self._under_way:
            transfer, row = self._under_way[0]
            try:
                if not transfer.ready():
                    return
                record = row.arrived()
            except Exception:
                self._drop_first()
                raise
            self._under_way.popleft()
            self._recorder.put(record)

    def deliver_all(self) -> None:
        """Wait for what is under way and hand it over; raises as `deliver`, after everything was tried."""
        failure: Exception | None = None
        while self._under_way:
            try:
                self._under_way[0][0].wait()
            except Exception as error:
                failure = error
                self._drop_first()
                continue
            try:
                self.deliver()
            except Exception as error:
                failure = error
        if failure is not None:
            raise failure

    def _drop_first(self) -> None:
        """Give up the oldest row under way."""
        self._under_way.popleft()
        self._recorder.dropped += 1

    def _queue(self, transfer: Transfer, row: OnItsWay) -> None:
        if len(self._under_way) >= TRANSFERS_UNDER_WAY:
            self._recorder.dropped += 1
        else:
            self._under_way.append((transfer, row))
