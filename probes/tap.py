"""The tap: one row of sums per loop, written on the device, with nothing the host would have to wait for.

A hook on the first module of the loop body sees ``h_t``; a hook on the first module after the loop sees ``h_T``. Each
writes one float32 row of *sums* over tokens into a preallocated buffer at a cursor that also lives on the device. Sums
add exactly over micro-batches; they are divided when they reach the host (`loop_means`). There is no Python counter
and no ``.item()``, so that nobody waits, whatever the depth.

Inside a compiled graph the hooks become one operator that Dynamo does not look into (`_tap`). The graph is then the
same in every loop, step and recomputation: a graph that knew whether recording is on would differ when a checkpoint
recomputes it, which torch refuses, and noting the last state would be a side effect, which breaks the graph.

Sequences may join the loop late (depth sampled per sequence): the batch that the body sees then grows, and is always a
prefix of the next one. A step is measured on the sequences that were already there.

Not covered: CUDA graphs (Inductor leaves the operator out of them), loops whose state is not one tensor, and sequences
that join anywhere but at the end of the batch.
"""

# Shapes: n sequences active in this loop, S positions, D width; R rows of the buffer.

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor, nn

from .site import LoopSite, argument

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch.utils.hooks import RemovableHandle


# Columns of a raw row. Counts are tokens; the last four are written once per forward, in its first row.
STATE_SUM, STATE_COUNT, STEP_SUM, STEP_COUNT, COSINE_SUM, COSINE_COUNT = range(6)
INPUT_SUM, INPUT_COUNT, INJECTION_SUM, INJECTION_COUNT = range(6, 10)
WIDTH = 10


class SumBuffer:
    """Rows of sums on the device and the cursor that says where the next one goes.

    Rows beyond the capacity all land in the last row and only the cursor tells them: they are counted, never hidden.
    """

    def __init__(self, capacity: int, device: torch.device) -> None:
        self.rows = torch.zeros(capacity, WIDTH, dtype=torch.float32, device=device)
        self.cursor = torch.zeros(1, dtype=torch.int64, device=device)
        self._last = capacity - 1

    def append(self, row: Tensor) -> None:
        """Writes one row ``(WIDTH,)`` at the cursor and moves it on, all on the device."""
        self.rows.index_copy_(0, self.cursor.clamp(max=self._last), row.unsqueeze(0))
        self.cursor.add_(1)

    def reset(self) -> None:
        """Forgets the rows; the next one is the first."""
        self.cursor.zero_()


class Hook:
    """A hook that a copied or pickled model does not take along: the copy holds one that does nothing.

    >>> import copy
    >>> copy.deepcopy(Hook(lambda x: 2 * x))(3) is None, Hook(lambda x: 2 * x)(3)
    (True, 6)
    """

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What torch calls."""
        return self._call(*args, **kwargs)

    def __reduce__(self) -> tuple[type[Hook], tuple[Callable[..., Any]]]:
        return Hook, (_nothing,)


def _nothing(*args: Any, **kwargs: Any) -> None:
    """What is left of a hook in a copy."""


_TAPS: WeakValueDictionary[int, LoopTap] = WeakValueDictionary()
_KEYS = count()


@torch.library.custom_op(
    "loopscope::tap",
    mutates_args=("order",),
    schema="(Tensor(a!) order, Tensor[] seen, int key, str place, bool training) -> ()",
    tags=(torch.Tag.cudagraph_unsafe,),
)
def _tap(order: Tensor, seen: list[Tensor], key: int, place: str, training: bool) -> None:
    """What a compiled graph calls where a hook is; ``order`` keeps the calls in order and is not changed."""
    tap = _TAPS.get(key)
    if tap is not None:
        tap.see(place, seen, training)


class LoopTap:
    """Hooks on a loop's two places that fill a `SumBuffer` while a training forward runs.

    Args:
        model: The user's module, unwrapped.
        site: Where its loop is.
        buffer: Where the rows of training forwards go.
        on_error: Called once with the exception should a hook ever fail; the tap is silent from then on.
    """

    def __init__(
        self, model: nn.Module, site: LoopSite, buffer: SumBuffer, on_error: Callable[[Exception], None]
    ) -> None:
        self.buffer = buffer
        self.enabled = True  # recording is due in this step
        self._target: SumBuffer | None = None  # the buffer of the forward under way; None outside of one
        self._redirected: SumBuffer | None = None
        self._previous: Tensor | None = None
        self._step: tuple[Tensor, Tensor] | None = None  # the last step and its norms
        self._site = site
        self._on_error = on_error
        self._key = next(_KEYS)
        _TAPS[self._key] = self
        self._order = torch.zeros(1, dtype=torch.int64, device=buffer.rows.device)
        modules = dict(model.named_modules())
        self._handles: list[RemovableHandle] = [
            model.register_forward_pre_hook(Hook(self._begin)),
            modules[site.body].register_forward_pre_hook(Hook(self._loop), with_kwargs=True),
            (
                modules[site.after].register_forward_pre_hook(Hook(self._finish))
                if site.output is None
                else modules[site.output].register_forward_hook(Hook(self._leave))
            ),
            model.register_forward_hook(Hook(self._end), always_call=True),
        ]

    def remove(self) -> None:
        """Takes the hooks off the model; harmless when they are off already."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        _TAPS.pop(self._key, None)  # graphs that were compiled with the hooks live on
        self._target = self._previous = self._step = None

    @contextmanager
    def into(self, buffer: SumBuffer) -> Iterator[None]:
        """Records the forwards of this block into another buffer, whatever the model's training mode."""
        self._redirected = buffer
        try:
            yield
        finally:
            self._redirected = None

    def _begin(self, module: nn.Module, args: Any) -> None:
        self._pass_on("begin", list, module.training)

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        self._pass_on("end", list)

    def _loop(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        places = (self._site.state_argument, self._site.input_argument)
        self._pass_on("loop", lambda: [argument(args, kwargs, place) for place in places if place is not None])

    def _finish(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._pass_on("finish", lambda: [args[0]])

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._pass_on("leave", lambda: [output[0] if isinstance(output, tuple) else output])

    def _pass_on(self, place: str, find: Callable[[], list[Tensor]], training: bool = False) -> None:
        """Lets the tap see what a hook was called with, through the operator when a graph is being traced."""
        try:
            if torch.compiler.is_compiling():
                _tap(self._order, [tensor.detach() for tensor in find()], self._key, place, training)
            else:
                self.see(place, find(), training)
        except Exception as error:
            self._fail(error)

    def see(self, place: str, seen: list[Tensor], training: bool) -> None:
        """Takes note of one place of the model that its forward has come to.

        Args:
            place: ``"begin"`` and ``"end"`` of the model's forward, ``"loop"`` for the first module of the body,
                ``"finish"`` for the one after the loop, ``"leave"`` for the one that returns the state.
            seen: The state, and in ``"loop"`` the input.
            training: Whether the model is in training mode; in ``"begin"`` only.
        """
        if place == "begin":
            # Recomputation during backward comes after "end" and is not seen.
            self._target = self._redirected or (self.buffer if training and self.enabled else None)
            self._previous = self._step = None
        elif place == "end":
            self._target = self._previous = self._step = None
        elif self._target is not None:
            try:
                self._see_state(self._target, place, seen)
            except Exception as error:
                self._fail(error)

    def _see_state(self, target: SumBuffer, place: str, seen: list[Tensor]) -> None:
        """Records a state where it is one that is still missing."""
        first, read_on_return = self._previous is None, self._site.output is not None
        if place == "loop":
            if self._site.state_argument is not None and (first or not read_on_return):
                self._record(target, seen[0], seen[1] if first and len(seen) > 1 else None)
        elif place == "leave":
            if first:  # nothing received h_0: what is missing is recorded as such
                self._record(target, torch.full_like(seen[0], torch.nan), None)
            self._record(target, seen[0], None)
        elif not first:
            self._record(target, seen[0], None)
            self._target = None  # what a second call of this module receives is not h_T

    def _fail(self, error: Exception) -> None:
        self._target = None
        self.enabled = False
        self._on_error(error)

    @torch.no_grad()
    def _record(self, target: SumBuffer, state: Tensor, injected: Tensor | None) -> None:
        """Appends the row of one state; called with ``h_0 … h_T`` in order."""
        # Autocast would turn these reductions and B̅e into bf16, in which 0.999 is 1.
        with torch.autocast(state.device.type, enabled=False):
            h = state.detach().float()
            zero = h.new_zeros(())
            sums = [_norm_sum(h), _count(h, zero)] + [zero] * (WIDTH - 2)
            now, spare = None, None
            if self._previous is not None:
                # In place, as below: fresh memory for every loop costs more than the arithmetic.
                step = torch.sub(h[: self._previous.shape[0]], self._previous, out=self._previous)
                now = step, torch.linalg.vector_norm(step, dim=-1)
                sums[STEP_SUM], sums[STEP_COUNT] = now[1].sum(), _count(step, zero)
                if self._step is not None:
                    spare = self._step[0]
                    sums[COSINE_SUM], sums[COSINE_COUNT] = _cosine_sum(now, self._step), _count(spare, zero)
            if injected is not None:
                e = injected.detach().float()
                sums[INPUT_SUM], sums[INPUT_COUNT] = _norm_sum(e), _count(e, zero)
                if self._site.b_bar is not None:
                    sums[INJECTION_SUM], sums[INJECTION_COUNT] = _norm_sum(self._inject(e)), _count(e, zero)
            target.append(torch.stack(sums))
            # The state is copied because the model may update it in place before the next loop.
            if h.dtype != state.dtype:
                self._previous = h
            else:
                self._previous = spare.copy_(h) if spare is not None and spare.shape == h.shape else h.clone()
            self._step = now

    def _inject(self, e: Tensor) -> Tensor:
        """``B̅ e`` for the three forms B̅ can have."""
        assert self._site.b_bar is not None
        b_bar = self._site.b_bar().detach().float()
        injected: Tensor = e @ b_bar.mT if b_bar.ndim == 2 else b_bar * e
        return injected


def _norm_sum(x: Tensor) -> Tensor:
    """Sum over tokens of the Euclidean norm."""
    total: Tensor = torch.linalg.vector_norm(x, dim=-1).sum()
    return total


def _cosine_sum(now: tuple[Tensor, Tensor], before: tuple[Tensor, Tensor]) -> Tensor:
    """Sum over tokens of the cosine of two successive steps (zero for a step of zero); uses up the earlier one."""
    (step, norm), (last, last_norm) = now, before
    n = last.shape[0]
    return (last.mul_(step[:n]).sum(-1) / (norm[:n] * last_norm).clamp(min=1e-30)).sum()


def _count(x: Tensor, like: Tensor) -> Tensor:
    """Number of tokens of ``x (n, S, D)`` as a float32 scalar on its device, without a copy from the host."""
    return like + x.shape[:-1].numel()


def loop_means(raw: NDArray[np.float32]) -> tuple[NDArray[np.float32], dict[str, float]]:
    """Turns the raw rows of one step into per-loop means and the numbers that a step has once.

    Args:
        raw: ``(rows, WIDTH)`` sums of one step in the order they were written; several micro-batches follow each other.

    Returns:
        ``(T + 1, 4)`` with the columns state_norm, residual_norm, step_cosine, tokens, and the values of ``depth``,
        ``depth_min``, ``depth_max`` (loops) and, where they were measured, ``input_norm`` and ``injection_norm``. ``T``
        is the largest depth of the step; a row averages over the tokens that reached that loop.

    >>> h0, h1 = [2.0, 1, 0, 0, 0, 0, 3.0, 1, 3.0, 1], [5.0, 1, 4.0, 1, 0, 0, 0, 0, 0, 0]
    >>> means, once = loop_means(np.array([h0, h1], dtype=np.float32))
    >>> means[:, 0].tolist(), means[0, 1].item(), once["depth"], once["input_norm"]
    ([2.0, 5.0], 4.0, 1.0, 3.0)
    """
    starts = np.flatnonzero(raw[:, STEP_COUNT] == 0)  # only h_0 has no step behind it
    forwards = np.split(raw.astype(np.float64), starts[1:])
    loops = max(len(f) for f in forwards)
    total = np.zeros((loops, WIDTH))
    for forward in forwards:
        total[: len(forward)] += forward
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.full((loops, 4), np.nan, dtype=np.float32)
        means[:, 0] = total[:, STATE_SUM] / total[:, STATE_COUNT]
        # A raw row holds the step that led to its state; residual_norm[t] is the step that leaves h_t.
        means[:-1, 1] = (total[:, STEP_SUM] / total[:, STEP_COUNT])[1:]
        means[:-1, 2] = (total[:, COSINE_SUM] / total[:, COSINE_COUNT])[1:]
        means[:, 3] = total[:, STATE_COUNT]
    ran = [f[:-1, STATE_COUNT] for f in forwards]
    tokens = [f[-1, STATE_COUNT] for f in forwards]
    once = {
        "depth": float(sum(r.sum() for r in ran) / sum(tokens)),
        "depth_min": float(min((r == n).sum() for r, n in zip(ran, tokens, strict=True))),
        "depth_max": float(loops - 1),
    }
    if total[0, INPUT_COUNT]:
        once["input_norm"] = float(total[0, INPUT_SUM] / total[0, INPUT_COUNT])
    if total[0, INJECTION_COUNT]:
        once["injection_norm"] = float(total[0, INJECTION_SUM] / total[0, INJECTION_COUNT])
    return means, once
