"""Logs in JSON: one object a line (``.jsonl``), a list of objects, or the ``trainer_state.json`` of Hugging Face.

``null`` is nothing logged; ``NaN`` and ``Infinity``, which Python writes and JSON does not know, are numbers that were
not finite. Nested objects are read by their dotted path joined with ``/``, two levels deep.

Not covered: what a text in the place of a number might mean.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from ..source import State
from ..text import plain
from .table import MOST_NAMES, LogError, LogTable, Record, choose, number, read_bytes, table

LARGEST_WHOLE: Final = 64 << 20  # bytes of a file that is one JSON value
_LONGEST_LINE: Final = 1 << 20
_TRAINER: Final = {"step": "step", "loss": "loss", "grad_norm": "grad_norm", "lr": "learning_rate",
                   "tokens": "num_input_tokens_seen"}  # fmt: skip
"""The names of Hugging Face's trainer; ``train_loss`` there is a mean over the whole training."""


def read_json(path: Path) -> LogTable:
    """Read a file that is one JSON value: a trainer state, or a list of records.

    Raises:
        LogError: It is neither.
    """
    content = read_bytes(path, LARGEST_WHOLE)
    try:
        whole = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise LogError(f"{plain(path)}: no UTF-8 text") from None
    except json.JSONDecodeError as error:
        if content.lstrip()[:1] == b"{" and b"\n" in content.strip():
            return read_lines(path)  # a line for each record, under the ending of a whole
        raise LogError(f"{plain(path)}:{error.lineno}:{error.colno}: no JSON: {plain(error.msg)}") from None
    except (ValueError, RecursionError) as error:
        raise LogError(f"{plain(path)}: no JSON that can be read: {plain(error)}") from None
    if isinstance(whole, dict) and isinstance(whole.get("log_history"), list):
        return _trainer_state(path, whole)
    if isinstance(whole, list) and whole and all(isinstance(entry, dict) for entry in whole):
        records = [_record(f"{plain(path)}: entry {number}", entry) for number, entry in enumerate(whole, 1)]
        return _of_records(path, "JSON", records)
    raise LogError(f"{plain(path)}: JSON, but neither a trainer_state.json with a log_history nor a list of records")


def read_lines(path: Path) -> LogTable:
    """Read a log with one JSON object a line.

    Raises:
        LogError: A line is none; the message names it.
    """
    return _of_records(path, "JSON lines", list(_lines(path)))


def _lines(path: Path) -> Iterator[Record]:
    """Yield the records of the lines; a last line that is still being written is left out."""
    content = read_bytes(path)
    lines = content.split(b"\n")
    for count, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{plain(path)}:{count}"
        if len(line) > _LONGEST_LINE:
            raise LogError(f"{where}: a line of {len(line)} bytes; a record has at most {_LONGEST_LINE}")
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            if count == len(lines) and count > 1:
                return
            said = error.msg if isinstance(error, json.JSONDecodeError) else error
            raise LogError(f"{where}: no JSON: {plain(said)}") from None
        if not isinstance(entry, dict):
            raise LogError(f'{where}: expected an object, as in {{"step": 1, "loss": 2.5}}')
        yield _record(where, entry)


def _of_records(path: Path, kind: str, records: list[Record]) -> LogTable:
    """Return records with names of their own as a table."""
    names: dict[str, None] = {}
    for record in records:
        names.update(dict.fromkeys(record.values))
        if len(names) > MOST_NAMES:
            raise LogError(f"{record.where}: more than {MOST_NAMES} different names; this is no log of scalars")
    chosen = choose(path, names)
    wanted = set(chosen.values())
    return table(path, kind, (_checked(record, wanted) for record in records), chosen)


def _record(where: str, entry: Mapping[str, Any]) -> Record:
    """Return the numbers of an object, a text in the place of one as it is: it is refused where it is wanted."""
    return Record(where, {name: value for name, value in flat(entry).items() if value is not None})


def flat(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers and texts of an object by dotted path, two levels deep; None for anything else."""
    values: dict[str, Any] = {}
    for name, value in entry.items():
        if isinstance(value, dict):
            values.update({f"{name}/{inner}": _number(each) for inner, each in value.items()})
        else:
            values[name] = _number(value)
    return values


def _number(value: Any) -> Any:
    """Return a number as a float, a text as it is, None for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return float("inf")
    return value if isinstance(value, str) else None


def _checked(record: Record, wanted: set[str]) -> Record:
    """Return the numbers of a record that are wanted, each once it is certain that it is one."""
    given: dict[str, float | None] = {}
    for name in wanted & record.values.keys():
        value: Any = record.values[name]
        given[name] = number(record.where, name, value) if isinstance(value, str) else value
    return Record(record.where, {name: value for name, value in given.items() if value is not None})


def _trainer_state(path: Path, state: Mapping[str, Any]) -> LogTable:
    """Return the log of a Hugging Face trainer."""
    history = state["log_history"]
    if not all(isinstance(entry, dict) for entry in history):
        raise LogError(f"{plain(path)}: log_history: expected objects")
    records = [_record(f"{plain(path)}: log_history[{at}]", entry) for at, entry in enumerate(history)]
    there = {name for record in records for name in record.values}
    names = {column: name for column, name in _TRAINER.items() if name in there}
    if "loss" not in names or "step" not in names:
        raise LogError(f"{plain(path)}: its log_history has no loss; set logging_steps in the trainer's arguments")
    wanted = set(names.values())
    done, planned = state.get("global_step"), state.get("max_steps")
    ended: State = "finished"
    reason = ""
    if isinstance(done, int) and isinstance(planned, int) and 0 <= done < planned:
        ended, reason = "interrupted", f"the trainer was at step {done} of {planned} when it wrote this state"
    config = {name: state[name] for name in ("max_steps", "num_train_epochs", "train_batch_size", "logging_steps")
              if isinstance(state.get(name), int | float)}  # fmt: skip
    return table(path, "trainer state", (_checked(record, wanted) for record in records), names,
                 config=config, state=ended, reason=reason)  # fmt: skip
