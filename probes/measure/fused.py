"""The reduction of a state in one pass over memory, for CUDA: a Triton kernel.

Made of torch operations (`reduction.EagerReduction`, its oracle), a state costs about ten launches and is read, copied
and read again in float32. Here one launch reads the state and the two before it as they are, writes the state over the
older one, and leaves one partial sum per program. Partial sums and no atomic additions: the same states give the same
numbers, whatever order the programs run in. Whether any token of a sequence has moved is a flag, which all programs set
to the same value; flags of several states are counted at a time.

Not covered: AMD and Intel GPUs, and states that are not contiguous or not in float32, bf16 or fp16, which go the eager
way. Where Triton is missing or fails, everything does.
"""

# Shapes: n sequences, N tokens of a state (n·S), D width, P programs. Earlier states hold the first tokens only.

from __future__ import annotations

import logging
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .reduction import (
    ACTIVE,
    COSINE,
    LEFT,
    MOST_WAITING,
    MOVED,
    STATE,
    STEP,
    SUMS,
    TINY,
    TURNED,
    EagerReduction,
    Tokens,
    follows,
)

log = logging.getLogger("loopscope")

PROGRAMS = 256  # about two for each multiprocessor of a large GPU; 6 MB of partial sums for 2048 rows
ELEMENTS = 4096  # of a tile: enough loads under way to hide the memory's latency
WIDEST = 16384
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@triton.jit
def _reduce(
    state, last, before, into, out, active,
    tokens, last_tokens, before_tokens, width, inner,
    has_last: tl.constexpr, has_before: tl.constexpr, tile_tokens: tl.constexpr, tile_width: tl.constexpr,
    tiny: tl.constexpr, at_state: tl.constexpr, at_step: tl.constexpr, at_cosine: tl.constexpr,
    at_left: tl.constexpr, at_moved: tl.constexpr, at_turned: tl.constexpr, at_active: tl.constexpr,
    sums: tl.constexpr,
):  # fmt: skip
    """Sum over the tokens of one program's tiles; a token without a predecessor adds nothing to its columns."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    columns = tl.arange(0, tile_width)
    inside = columns < width
    state_sum = tl.zeros([tile_tokens], tl.float32)
    step_sum = tl.zeros([tile_tokens], tl.float32)
    cosine_sum = tl.zeros([tile_tokens], tl.float32)
    left_sum = tl.zeros([tile_tokens], tl.float32)
    moved_sum = tl.zeros([tile_tokens], tl.float32)
    turned_sum = tl.zeros([tile_tokens], tl.float32)
    for start in range(program * tile_tokens, tokens, programs * tile_tokens):
        rows = start + tl.arange(0, tile_tokens)
        places = rows.to(tl.int64)[:, None] * width + columns[None, :]
        here = (rows < tokens)[:, None] & inside[None, :]
        raw = tl.load(state + places, mask=here, other=0.0)
        h = raw.to(tl.float32)
        state_sum += tl.sqrt(tl.sum(h * h, axis=1))
        if has_last:
            there = (rows < last_tokens)[:, None] & inside[None, :]
            h1 = tl.load(last + places, mask=there, other=0.0).to(tl.float32)
            step = tl.where(there, h - h1, 0.0)
            length = tl.sqrt(tl.sum(step * step, axis=1))
            step_sum += length
            moved = length != 0.0  # a NaN has moved
            moved_sum += moved.to(tl.float32)
            left_sum += tl.where(moved, tl.sqrt(tl.sum(h1 * h1, axis=1)), 0.0)
            tl.store(active + rows // inner, tl.full([tile_tokens], 1, tl.int32), mask=moved & (rows < last_tokens))
            if has_before:
                known = (rows < before_tokens)[:, None] & inside[None, :]
                h2 = tl.load(before + places, mask=known, other=0.0).to(tl.float32)
                earlier = tl.where(known, h1 - h2, 0.0)
                earlier_length = tl.sqrt(tl.sum(earlier * earlier, axis=1))
                product = tl.sum(step * earlier, axis=1)
                # One length after the other: their product leaves float32 sooner than they do.
                cosine_sum += (product / tl.maximum(length, tiny) / tl.maximum(earlier_length, tiny)).to(tl.float32)
                turned_sum += (moved & (earlier_length != 0.0)).to(tl.float32)
        tl.store(into + places, raw, mask=here)
    row = out + program * sums
    tl.store(row + at_state, tl.sum(state_sum, axis=0))
    tl.store(row + at_active, 0.0)  # counted from the flags
    if has_last:
        tl.store(row + at_step, tl.sum(step_sum, axis=0))
        tl.store(row + at_moved, tl.sum(moved_sum, axis=0))
        tl.store(row + at_left, tl.sum(left_sum, axis=0))
    if has_before:
        tl.store(row + at_cosine, tl.sum(cosine_sum, axis=0))
        tl.store(row + at_turned, tl.sum(turned_sum, axis=0))


class FusedReduction:
    """The sums of `EagerReduction`, computed by one kernel per state.

    A state that the kernel does not take, and everything from the first failure of a launch on, is reduced eagerly; a
    forward that began fused then loses the step across the change (it counts over no tokens).

    Args:
        programs: Programs of a launch; also the partial sums of a row.

    Attributes:
        broken: Whether a launch has failed.
    """

    def __init__(self, programs: int = PROGRAMS) -> None:
        self.parts = programs
        self._eager = EagerReduction()
        self.broken = False
        self._flags = torch.empty(0, 0, dtype=torch.int32)  # (waiting, n): whether any token of a sequence has moved
        self._waiting = 0
        self._rows, self._at = torch.empty(0), 0  # where the counts of the waiting flags go
        self.forget()

    def forget(self) -> None:
        """Begin a new forward."""
        self.settle()
        self._last: Tensor | None = None  # copies of h_{t-1} and h_{t-2}, in their own precision
        self._before: Tensor | None = None
        self._shrunk = False
        self._eagerly = self.broken
        self._eager.forget()

    def settle(self) -> None:
        """Write the rows that wait: eager ones, and counts of sequences."""
        self._eager.settle()
        count, self._waiting = self._waiting, 0
        if count:
            self._rows[self._at : self._at + count, 0, ACTIVE] = self._flags[:count].sum(1).to(self._rows.dtype)

    def add(self, state: Tensor, rows: Tensor, at: int) -> Tokens:
        """Take the next state, as `Reduction.add` says."""
        if not self._eagerly and _fits(state):
            try:
                return self._launch(state, rows, at)
            except Exception as error:  # a driver or compiler that does not suit: plain torch computes the same numbers
                self.broken = True
                log.warning("loopscope: the fused reduction failed, torch operations take over: %r", error)
        if not self._eagerly:
            self.settle()
        self._eagerly = True
        rows[at].zero_()
        return self._eager.add(state, rows, at)

    def _launch(self, state: Tensor, rows: Tensor, at: int) -> Tokens:
        """Run the kernel on a state."""
        if self._last is not None and not follows(state, self._last, shrunk=self._shrunk):
            self._shrunk, self._last, self._before = True, None, None
        last, before, out = self._last, self._before, rows[at]
        tokens, last_tokens, before_tokens = (0 if x is None else x.shape[:-1].numel() for x in (state, last, before))
        fits = before is not None and before.shape == state.shape and before.dtype == state.dtype
        into = before if fits and before is not None else torch.empty_like(state)
        width, inner = state.shape[-1], state.shape[1:-1].numel()
        flags = self._flags_for(state, rows, at)
        with _current(state):
            _reduce[(self.parts,)](
                state, state if last is None else last, state if before is None else before, into, out, flags,
                tokens, last_tokens, before_tokens, width, inner,
                **constants(width, has_last=last is not None, has_before=before is not None),
            )  # fmt: skip
        self._waiting += 1
        self._last, self._before = into, last
        return Tokens(tokens, last_tokens, before_tokens, 0 if last is None else len(last))

    def _flags_for(self, state: Tensor, rows: Tensor, at: int) -> Tensor:
        """Return flags, all down, for the sequences of a state."""
        goes_on = 0 < self._waiting < len(self._flags) and rows is self._rows and at == self._at + self._waiting
        if not goes_on or self._flags.shape[1] != len(state) or self._flags.device != state.device:
            self.settle()
            self._rows, self._at = rows, at
            self._flags = torch.zeros(MOST_WAITING, len(state), dtype=torch.int32, device=state.device)
        return self._flags[self._waiting]


def constants(width: int, *, has_last: bool, has_before: bool) -> dict[str, Any]:
    """Return what the kernel is compiled for: the tile of a width, and which earlier states there are."""
    tile_width = triton.next_power_of_2(width)
    tile = {"tile_tokens": max(1, ELEMENTS // tile_width), "tile_width": tile_width, "tiny": TINY}
    places = {"at_state": STATE, "at_step": STEP, "at_cosine": COSINE, "at_left": LEFT, "at_moved": MOVED}
    places |= {"at_turned": TURNED, "at_active": ACTIVE, "sums": SUMS}
    return {"has_last": has_last, "has_before": has_before} | tile | places


def _fits(state: Tensor) -> bool:
    """Return whether the kernel takes this state."""
    return state.is_contiguous() and state.dtype in DTYPES and 1 <= state.shape[-1] <= WIDEST


def _current(state: Tensor) -> Any:
    """Make the state's device the current one, on which Triton launches."""
    return torch.cuda.device_of(state)
