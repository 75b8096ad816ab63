"""Fuzzes what the gate reads from elsewhere: expressions, rule files, settings, baselines, logs of other tools.

Each case is one byte for the kind and then the content. Whatever the content, it is read or refused in one line,
without control characters, and what is read makes sense. Event files and offline runs are also built with valid
checksums around the content, which no mutation of bytes would hit.

    pip install --target FOLDER atheris
    PYTHONPATH=FOLDER python benchmarks/fuzz.py -timeout=60 CORPUS

``tests/gate/fuzzed.json`` keeps some cases of each kind, which a test reads again.

Not covered: run files, which have a fuzzer of their own (tests/runfile).
"""

from __future__ import annotations

import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
from loopscope.gate.baseline import BaselineError, read_baseline
from loopscope.rules import rule_files
from loopscope.rules.expression import Evaluator, ExpressionError, parse
from loopscope.rules.rule_files import RuleError, find_rule_file, load_rules
from loopscope.runfile.foreign import wire
from loopscope.runfile.layout import RunFileError
from loopscope.runfile.open import open_run

LONGEST: Final = 3000  # characters of a refusal
ROWS: Final = np.random.default_rng(0).choice([np.nan, np.inf, -np.inf, 0.0, 1.0, -2.5, 1e308], 12)
STEPS: Final = np.cumsum([1, 1, 2, 1, 3, 1, 1, 1, 9, 1, 1, 1]).astype(float)

Target = Callable[[Path, bytes], None]


def read_expression(folder: Path, content: bytes) -> None:
    """Read an expression; judge rows by it at once and in two parts, with the state kept between them."""
    text = content.decode("utf-8", "replace")
    try:
        expression = parse(text)
    except ExpressionError as error:
        assert 0 <= error.offset <= len(text)
        _one_line(error)
        return
    series = dict.fromkeys(expression.names, ROWS)
    whole = Evaluator(expression).update(STEPS, series)
    first, second = Evaluator(expression), Evaluator(expression)
    parts = [first.update(STEPS[:5], {name: rows[:5] for name, rows in series.items()}).truth.yes]
    second.restore(first.state())
    parts.append(second.update(STEPS[5:], {name: rows[5:] for name, rows in series.items()}).truth.yes)
    assert np.array_equal(np.concatenate(parts), whole.truth.yes)


def read_rules(folder: Path, content: bytes) -> None:
    """Read a rule file."""
    _read_rules(_written(folder / "r.toml", content))


def read_project(folder: Path, content: bytes) -> None:
    """Look for the rules of a project, and read what is found."""
    _written(folder / "pyproject.toml", content)
    found = find_rule_file(folder)
    if found is not None:
        _read_rules(found)


def read_baseline_file(folder: Path, content: bytes) -> None:
    """Read a baseline."""
    try:
        read_baseline(_written(folder / "baseline.json", content))
    except BaselineError as error:
        _one_line(error)


def log_named(name: str, wrap: Callable[[bytes], bytes] = bytes) -> Target:
    """Return a target that opens a log of some name."""

    def read(folder: Path, content: bytes) -> None:
        try:
            with open_run(_written(folder / name, wrap(content))) as run:
                assert len(run) and not np.isnan(run["step"]).any() and (np.diff(run["step"]) > 0).all()
                assert np.isfinite(run["nonfinite"]).all()
        except RunFileError as error:
            _one_line(error)

    return read


def as_event_file(content: bytes) -> bytes:
    """Return an event file whose records are parts of the content."""
    out = b""
    for record in _parts(content):
        head = struct.pack("<Q", len(record))
        out += head + _checksum(head) + record + _checksum(record)
    return out


def as_offline_run(content: bytes) -> bytes:
    """Return an offline run of W&B whose records are parts of the content."""
    out = bytearray(b":W&B\xe1\xbe\x00")
    for record in _parts(content):
        out += struct.pack("<IHB", zlib.crc32(record, zlib.crc32(b"\1")), len(record), 1) + record
    return bytes(out)


TARGETS: Final[dict[str, Target]] = {
    "expression": read_expression,
    "rules": read_rules,
    "project": read_project,
    "baseline": read_baseline_file,
    "csv": log_named("a.csv"),
    "tsv": log_named("a.tsv"),
    "jsonl": log_named("a.jsonl"),
    "json": log_named("a.json"),
    "trainer": log_named("trainer_state.json"),
    "events": log_named("events.out.tfevents.1.raw"),
    "records": log_named("events.out.tfevents.2.host", as_event_file),
    "wandb": log_named("raw.wandb"),
    "offline": log_named("run.wandb", as_offline_run),
}


def _read_rules(path: Path) -> None:
    try:
        load_rules(path)
    except RuleError as error:
        _one_line(error)


def _one_line(error: Exception) -> None:
    said = str(error)
    assert len(said.splitlines()) == 1 and said.isprintable() and len(said) < LONGEST, repr(said[:300])


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _parts(content: bytes) -> Iterator[bytes]:
    """Yield parts of some bytes, each as long as the byte before it says."""
    for _ in range(40):
        if not content:
            return
        yield content[1 : 1 + content[0]]
        content = content[1 + content[0] :]


def _checksum(data: bytes) -> bytes:
    return struct.pack("<I", int(wire.masked(wire.crc32c(np.frombuffer(data, np.uint8)[None]))[0]) if data else 0)


def main() -> None:
    """Fuzz until stopped; counts go to standard error once a minute."""
    import atheris

    atheris.instrument_all()
    few = list(rule_files._shipped())[:4]
    rule_files._shipped = lambda: list(few)  # else each case would parse all the shipped rules
    folder, kinds = Path(tempfile.mkdtemp(prefix="loopscope-fuzz-")), list(TARGETS)
    done, told = Counter[str](), time.monotonic()

    def one(data: bytes) -> None:
        nonlocal told
        if not data:
            return
        kind = kinds[data[0] % len(kinds)]
        TARGETS[kind](folder, data[1:])
        done[kind] += 1
        if time.monotonic() - told > 60:
            told = time.monotonic()
            print(f"{sum(done.values())} cases: {dict(done)}", file=sys.stderr, flush=True)

    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
