"""Names, units and shapes of everything in a run file: the one place that knows them.

A run file is one HDF5 file. Its tables only grow; a row counts once a row of the ``commit`` table says so. The prose
description, complete enough to write a reader in another language, is ``docs/run-file.md``.

Not covered here: how bytes reach the disk (``writer``), how they are read (``file_source``), what is done after a kill
(``handle``, ``repair``).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from .text import plain

FORMAT: Final = "loopscope-run"
VERSION: Final = 3  # 2 added the tables of arrays, 3 those of variables; older commit rows lack their columns

STEP_COLUMNS: Final = (
    "step",
    "time",
    "generation",
    "loss",
    "grad_norm",
    "lr",
    "tokens",
    "depth",
    "depth_min",
    "depth_max",
    "input_norm",
    "injection_norm",
    "a_bar_radius",
    "a_bar_norm",
    "b_bar_norm",
    "c_out_norm",
    "nonfinite",
    "probe_seconds",
    "rows_dropped",
    "a_bar_radius_error",
    "jacobian_radius",
    "jacobian_norm",
    "lyapunov_max",
    "lyapunov_error",
    "c_out_gain",
    "full_loop_seconds",
    "a_bar_radius_lower",
    "a_bar_radius_upper",
    "a_bar_radius_exact",
    "a_bar_radius_exact_step",
    "eval_depth",
    "eval_depth_max",
    "eval_forwards",
    "backward_depth",
)
FIRST_COLUMNS: Final = 19  # of STEP_COLUMNS, in every file; the others may be missing in files of earlier versions
LOOP_COLUMNS: Final = ("state_norm", "residual_norm", "step_cosine", "tokens")
VARIABLE_COLUMNS: Final = (*LOOP_COLUMNS, "pass", "inner")
VARIABLE_INDEX_COLUMNS: Final = ("step", "generation", "variable", "end")
MOST_VARIABLES: Final = 64
PROBE_INDEX_COLUMNS: Final = ("step", "generation", "end")
ARRAY_DTYPES: Final = frozenset(
    ("|b1", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8", "<c8", "<c16")
)
ARRAY_DIMENSIONS: Final = 4  # most axes of an array
SPARE_COLUMNS: Final = 16  # unnamed at creation; a user scalar that appears later takes the next one
NAME_BYTES: Final = 64
MAX_EIGENVALUES: Final = 64
LARGEST_STEP: Final = 2.0**62  # of what no step number reaches, fits int64

# Series that follow from the loops of a step: of which quantity, and how many rows before the last state.
STEP_DERIVED: Final = {"last_state_norm": ("state_norm", 0), "last_residual_norm": ("residual_norm", 1)}
PROBE_DERIVED: Final = ("residual_ratio", "growth_ratio")

DESCRIPTIONS: Final[dict[str, tuple[str, str]]] = {
    "step": ("steps", "optimizer step, as the trainer counts it"),
    "time": ("s", "when the step was recorded, seconds since 1970 (the clock may jump)"),
    "generation": ("", "0 for the first process that wrote the run, one more after every resume"),
    "loss": ("nats", "training loss as the trainer gives it"),
    "grad_norm": ("1", "gradient norm as the trainer gives it"),
    "lr": ("1", "learning rate"),
    "tokens": ("tokens", "tokens trained on so far, as the trainer counts them, over all ranks"),
    "depth": ("loops", "loops run in the step, mean over sequences"),
    "depth_min": ("loops", "fewest loops of any sequence in the step"),
    "depth_max": ("loops", "most loops of any sequence in the step"),
    "input_norm": ("1", "mean over tokens of ‖e‖, the input the loop is given"),
    "injection_norm": ("1", "mean over tokens of ‖B̅e‖, what the injection adds in every loop"),
    "a_bar_radius": ("1", "ρ(A̅), spectral radius of the linear part; above 1 it amplifies"),
    "a_bar_norm": ("1", "σ_max(A̅), largest singular value of the linear part"),
    "b_bar_norm": ("1", "σ_max(B̅), largest singular value of the input matrix"),
    "c_out_norm": ("1", "σ_max(C_out), largest singular value of the read-out"),
    "nonfinite": ("numbers", "how many numbers given or measured in the step were NaN or infinite"),
    "probe_seconds": ("s", "time loopscope itself took in the step"),
    "rows_dropped": ("rows", "rows the recorder has dropped so far"),
    "a_bar_radius_error": ("1", "relative residual of a_bar_radius: 0 where exact; above 0.001 the radius is left out"),
    "a_bar_radius_lower": ("1", "lower end of the interval that a tracked ρ(A̅) is in, measured and not proven"),
    "a_bar_radius_upper": ("1", "upper end of that interval; recorded where a_bar_radius is left out, too"),
    "a_bar_radius_exact": ("1", "exact ρ(A̅) of an earlier step, in the row in which its computation arrived"),
    "a_bar_radius_exact_step": ("steps", "the step whose A̅ a_bar_radius_exact is of"),
    "jacobian_radius": (
        "1",
        "spectral radius of the full loop's Jacobian after 2·μ_rec loops of the probe batch, 16 at least, 64 if nested",
    ),
    "jacobian_norm": ("1", "σ_max of the same Jacobian: the worst growth of a perturbation in one loop"),
    "lyapunov_max": ("nats/loop", "largest growth rate of a perturbation over the late loops; above 0 it grows"),
    "lyapunov_error": ("nats/loop", "standard error of lyapunov_max"),
    "c_out_gain": ("1", "mean over tokens of ‖C_out h‖ / ‖h‖ at the same state"),
    "full_loop_seconds": ("s", "time that the measurement of the full loop took; recorded where one was tried"),
    "eval_depth": ("loops", "loops of forwards in evaluation mode since the row before, mean over these forwards"),
    "eval_depth_max": ("loops", "most loops of such a forward"),
    "eval_forwards": ("forwards", "how many there were; NaN in these three where there was none"),
    "backward_depth": ("loops", "iterations of the backward solve, where the gradient of a fixed point is solved for"),
    "state_norm": ("1", "mean over tokens of ‖h_t‖, the carried state, per loop"),
    "residual_norm": ("1", "mean over tokens of ‖h_{t+1} − h_t‖, the update, per loop"),
    "step_cosine": ("1", "mean cosine of successive updates, per loop"),
    "pass": ("passes", "pass of the loop that made this value of a variable, from 1; 0 is the value before the loop"),
    "inner": ("updates", "which update of the variable within its pass this is, from 1"),
    "last_state_norm": ("1", "‖h_T‖, the state norm after the last loop"),
    "last_residual_norm": ("1", "the update norm of the last loop"),
    "residual_ratio": ("1", "mean ratio of successive update norms over late loops, on the probe batch"),
    "growth_ratio": ("1", "mean ratio of successive state norms over late loops, on the probe batch"),
}
"""Unit and meaning of every name a run can be asked for; a user's own scalars are not in it."""

INFO_LATER: Final = "info_later"
"""Name of the arrays that hold what was learnt of the whole run after its file was made, as JSON in UTF-8."""
EVALUATED: Final = "evaluated"
"""Kind of the event that says what was evaluated after the last row; its value is the most loops of a forward."""
BLOCK_NORM: Final = "block_state_norm"
GRADIENT_NORM: Final = "state_gradient_norm"
TOKEN_MAP: Final = "token_residual_norm"
LYAPUNOV_EXPONENTS: Final = "lyapunov_exponents"
TOKEN_RADIUS: Final = "token_jacobian_radius"
JACOBIAN_EIGENVALUES: Final = "jacobian_eigenvalues"
VARIABLE_PASSES: Final = "variable_passes"
PASS_ROUNDING: Final = "pass_rounding"
A_BAR: Final = "a_bar"
ARRAY_DESCRIPTIONS: Final[dict[str, tuple[str, str, str]]] = {
    BLOCK_NORM: (
        "float32 (K)",
        "1",
        "mean over tokens of the norm of the state after each block of the prelude, and in the first loop after the "
        "injection and each block: after `site.prelude` and `site.sublayers` of `info`; NaN for one that did not run, "
        "infinite where a norm is not finite",
    ),
    GRADIENT_NORM: (
        "float32 (T + 1)",
        "nats",
        "‖∂L/∂h_t‖₂ over all tokens of the step, t = 0 … T; NaN where no gradient arrived, infinite where one did that "
        "is not finite",
    ),
    TOKEN_MAP: (
        "float32 (D, n, P)",
        "1",
        "‖h_{t+1} − h_t‖ of every token of a pass of the probe batch: D loops, n sequences, their first P positions",
    ),
    LYAPUNOV_EXPONENTS: (
        "float32 (n, P, k) or (k)",
        "nats/loop",
        "the largest growth rates over the late loops in order of their directions, of each token's own state, or of "
        "the whole loop where tokens are not told apart; `lyapunov_max` is the largest along a first direction",
    ),
    TOKEN_RADIUS: (
        "float32 (n, P)",
        "1",
        "spectral radius of each token's own Jacobian after 2·μ_rec loops; `jacobian_radius` is the largest",
    ),
    JACOBIAN_EIGENVALUES: (
        "complex64 (k)",
        "1",
        "eigenvalues of the full loop's Jacobian after 2·μ_rec loops, over all tokens measured, the k <= 64 largest",
    ),
    VARIABLE_PASSES: (
        "float32 (V, T + 1, 3)",
        "1",
        "of every variable, in the passes t = 0 … T that the measurement of the full loop runs, at least 64 (16 before "
        "December 2026): `state_norm` after pass t, `residual_norm` from there to the end of the next pass, "
        "`step_cosine` of that step with the one before, as in `loops`",
    ),
    PASS_ROUNDING: (
        "float32 (V)",
        "1",
        "of every variable, how far from straight one pass is over a change of the state by 1e-4 of its size, beside "
        "its norm: ‖F(h + δ) + F(h − δ) − 2 F(h)‖. Above 1e-5 a pass may round more than float32 does",
    ),
    A_BAR: (
        "float32 (d, d) or (d)",
        "1",
        "A̅ itself, its diagonal where it has no more, up to width 64; at steps each a tenth later than the one before",
    ),
}
"""Shape, unit and meaning of the arrays a run can hold."""

Severity = Literal["note", "warning", "error"]

# Tables whose lengths a commit row publishes, in flush order: what a row points at is written before the row. New ones
# come last, so that the width of a file's commit rows says which of them it has.
TABLES: Final = (
    "columns", "loops", "loop_end", "steps", "probe", "probe_index", "spectra", "events", "arrays", "array_index",
    "variables", "variable_index",
)  # fmt: skip
_COMMIT_TAIL: Final = ("generation", "finished", "time_ns", "check")
COMMIT_COLUMNS: Final = (*TABLES, *_COMMIT_TAIL)
_LARGE_CHUNK_BYTES: Final = 128 * 1024  # read faster; flushes rewrite the last
CHUNK_BYTES: Final = dict.fromkeys(("steps", "loops", "arrays"), _LARGE_CHUNK_BYTES)
SMALL_CHUNK_BYTES: Final = 16 * 1024
DISK_RESERVE: Final = 2 << 20  # free bytes every write leaves: a new chunk and index block of each table, with margin

EVENT_DTYPE: Final = np.dtype(
    [
        ("step", "<i8"),
        ("generation", "<i8"),
        ("time", "<f8"),
        ("kind", "S32"),
        ("severity", "S8"),
        ("value", "<f8"),
        ("threshold", "<f8"),
        ("message", "S240"),
    ]
)
ARRAY_INDEX_DTYPE: Final = np.dtype(
    [
        ("step", "<i8"),
        ("generation", "<i8"),
        ("end", "<i8"),  # where its bytes end in ``arrays``; they start where those of the row before end
        ("name", f"S{NAME_BYTES}"),
        ("dtype", "S8"),
        ("ndim", "<i8"),
        ("shape", "<i8", (ARRAY_DIMENSIONS,)),
    ]
)


class RunFileError(Exception):
    """A run file cannot be used; the message is one line: the file, what was expected, what to do."""

    def __init__(self, message: object) -> None:
        super().__init__(plain(message))


class NotARun(RunFileError):
    """The path is no run file at all: a folder, another format, somebody else's HDF5."""


class DamagedRun(RunFileError):
    """A run file with parts missing or unreadable."""


class RunInUse(RunFileError):
    """A live process is writing this run."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened at one step of a run, found live or written by a rule.

    Args:
        step: Optimizer step it belongs to.
        time: When it was found, seconds since 1970.
        kind: Short stable name such as ``"loss_spike"`` (32 bytes; longer is cut).
        severity: ``"note"``, ``"warning"`` or ``"error"``.
        value: The number that caused it, NaN where there is none.
        threshold: What it was compared with, NaN where there is none.
        message: One sentence for a person (240 bytes of UTF-8; what is longer ends in …).
        generation: Which process recorded it, as the file says; the writer sets it.

    >>> Event(step=3, time=0.0, kind="loss_spike", severity="warning", value=9.5, message="loss rose to 9.5").threshold
    nan
    """

    step: int
    time: float
    kind: str
    severity: Severity = "note"
    value: float = math.nan
    threshold: float = math.nan
    message: str = ""
    generation: int = 0


ELLIPSIS: Final = "…".encode()


def clip_utf8(text: str, size: int) -> bytes:
    """Encode ``text`` in at most ``size`` bytes without cutting a character in half."""
    return text.encode("utf-8", "replace")[:size].decode("utf-8", "ignore").encode("utf-8")


def cut_at_word(text: str, size: int) -> bytes:
    """Encode ``text`` in at most ``size`` bytes; an ellipsis says where it was cut, between two words.

    >>> cut_at_word("what was expected", 17), cut_at_word("what was expected", 16).decode()
    (b'what was expected', 'what was …')
    """
    whole = text.encode("utf-8", "replace")
    if len(whole) <= size:
        return whole
    kept = clip_utf8(text, size - len(ELLIPSIS)).decode()
    return kept[: kept.rfind(" ") + 1].encode() + ELLIPSIS if " " in kept else clip_utf8(text, size)


def pack_event(event: Event, generation: int) -> tuple[Any, ...]:
    """Return the event as one row of the events table."""
    return (
        int(event.step),
        generation,
        float(event.time),
        clip_utf8(event.kind, 32),
        clip_utf8(event.severity, 8),
        float(event.value),
        float(event.threshold),
        cut_at_word(event.message, 240),
    )


def unpack_event(row: Any) -> Event:
    """Return one row of the events table as an event; what is no severity is a warning."""
    said = bytes(row["severity"]).decode("utf-8", "replace")
    severity = {"info": "note"}.get(said, said)  # the word of files written before the severities had one vocabulary
    return Event(
        step=int(row["step"]),
        time=float(row["time"]),
        kind=bytes(row["kind"]).decode("utf-8", "replace"),
        severity=severity if severity in get_args(Severity) else "warning",  # type: ignore[arg-type]
        value=float(row["value"]),
        threshold=float(row["threshold"]),
        message=bytes(row["message"]).decode("utf-8", "replace"),
        generation=int(row["generation"]),
    )


@dataclass(frozen=True, slots=True)
class Commit:
    """One published state of a run: table lengths, who wrote it, and whether the run ended.

    A table that the file is too old to have has length 0.
    """

    lengths: dict[str, int]
    generation: int
    finished: bool
    time_ns: int

    def pack(self) -> NDArray[np.int64]:
        """Return the commit row, shape ``(len(COMMIT_COLUMNS),)``, its own check value last."""
        body = [*(self.lengths[t] for t in TABLES), self.generation, int(self.finished), self.time_ns]
        row = np.array([*body, 0], dtype="<i8")
        row[-1] = zlib.crc32(row[:-1].tobytes())
        return row.astype(np.int64, copy=False)

    @staticmethod
    def unpack(row: NDArray[np.int64]) -> Commit | None:
        """Return the commit in ``row``, or None where the row was only partly written.

        >>> row = Commit(dict.fromkeys(TABLES, 7), generation=0, finished=False, time_ns=1).pack()
        >>> Commit.unpack(row).lengths["steps"]
        7
        >>> row[0] += 1
        >>> Commit.unpack(row) is None
        True
        """
        if int(row[-1]) != zlib.crc32(row[:-1].astype("<i8").tobytes()):
            return None
        present = tables_of(len(row))
        lengths = dict.fromkeys(TABLES, 0) | {table: int(n) for table, n in zip(present, row, strict=False)}
        generation, finished, time_ns = (int(v) for v in row[len(present) : -1])
        return Commit(lengths, generation, bool(finished), time_ns)


def tables_of(commit_width: int) -> tuple[str, ...]:
    """Return which tables a file has whose commit rows have that many columns.

    >>> [table for table in TABLES if table not in tables_of(12)]  # version 1
    ['arrays', 'array_index', 'variables', 'variable_index']
    """
    return TABLES[: max(0, commit_width - len(_COMMIT_TAIL))]


def table_shapes(step_columns: int, eigenvalues: int) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Return row shape and dtype of every table, ``commit`` included, for a run of the given widths."""
    f8, f4, i8 = np.dtype("<f8"), np.dtype("<f4"), np.dtype("<i8")
    return {
        "columns": ((), np.dtype(f"S{NAME_BYTES}")),
        "loops": ((len(LOOP_COLUMNS),), f4),
        "loop_end": ((), i8),
        "steps": ((step_columns,), f8),
        "probe": ((len(LOOP_COLUMNS),), f4),
        "probe_index": ((len(PROBE_INDEX_COLUMNS),), i8),
        "spectra": ((2 + 2 * eigenvalues,), f8),
        "events": ((), EVENT_DTYPE),
        "arrays": ((), np.dtype("u1")),
        "array_index": ((), ARRAY_INDEX_DTYPE),
        "variables": ((len(VARIABLE_COLUMNS),), f4),
        "variable_index": ((len(VARIABLE_INDEX_COLUMNS),), i8),
        "commit": ((len(COMMIT_COLUMNS),), i8),
    }


def chunk_rows(table: str, row_shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Return how many rows one live chunk of a table holds."""
    return max(8, CHUNK_BYTES.get(table, SMALL_CHUNK_BYTES) // (math.prod(row_shape) * dtype.itemsize))


def derived_from_loops(loops: NDArray[np.float32] | None) -> dict[str, float]:
    """Return `STEP_DERIVED` for one step; nothing for a step without a loop.

    Args:
        loops: ``(T + 1, 4)`` as ``LOOP_COLUMNS``, or None.

    >>> derived_from_loops(np.array([[1, 4, 0, 8], [2, np.nan, 0, 8]], dtype=np.float32))
    {'last_state_norm': 2.0, 'last_residual_norm': 4.0}
    """
    if loops is None or len(loops) < 2:
        return {}
    return {name: float(loops[-1 - back, LOOP_COLUMNS.index(of)]) for name, (of, back) in STEP_DERIVED.items()}


def wrong_scalar_name(name: str, taken: Iterable[str]) -> str:
    """Say what is wrong with a scalar's name, ``""`` when nothing is."""
    if not name or len(name.encode()) > NAME_BYTES:
        return f"must have 1 to {NAME_BYTES} bytes"
    if name in taken:
        return "is named twice"
    if name in DESCRIPTIONS and name not in STEP_COLUMNS:
        return "is taken by a number loopscope measures itself; choose another name"
    return ""
