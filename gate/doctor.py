"""What there is in a folder that can be judged, what of it cannot, and what would change that.

Looks for run files, for logs of other tools, and for training scripts that record nothing yet. Nothing is imported and
nothing is run; how many files are looked at is bounded.

Not covered: whether what can be judged passes; that is what ``check`` is for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from ..rules.diagnosis import diagnose
from ..rules.rule_files import load_rules
from ..runfile.foreign.folders import logs_among
from ..runfile.layout import RunFileError
from ..runfile.open import open_run
from ..runfile.rank_names import rank_of

MOST_FILES: Final = 20_000  # names looked at
MOST_JUDGED: Final = 200  # files opened
MOST_SCRIPTS: Final = 20
DEEPEST: Final = 8
_NO_PLACE: Final = frozenset({"__pycache__", "node_modules", "site-packages", "venv", "env", "build", "dist"})
_SCRIPT_BYTES: Final = 256 << 10
_LOG_BYTES: Final = 64 << 20  # larger logs are named and not read
_TRAINS: Final = ((b".backward(", b".step("), (b"Trainer(", b".train("), (b"Trainer(", b".fit("))
_WATCHED: Final = (b"loopscope",)

Kind = Literal["run", "log", "script"]


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that was seen.

    Attributes:
        kind: ``run``, ``log`` or ``script``.
        path: Where.
        what: What it is, in a line.
        judged: Ids of the rules that can be judged on it.
        not_judged: Why others cannot: reason and ids.
        problem: Why nothing of it can be judged; empty where something can.
        remedy: Lines of what to do.
    """

    kind: Kind
    path: str
    what: str
    judged: tuple[str, ...] = ()
    not_judged: tuple[tuple[str, tuple[str, ...]], ...] = ()
    problem: str = ""
    remedy: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the item for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Report:
    """What was seen in a folder.

    Attributes:
        items: Runs, then logs, then scripts.
        left_out: What was not looked at because there was too much; empty otherwise.
    """

    items: Sequence[Item]
    left_out: str = ""

    @property
    def judgeable(self) -> int:
        """How many things something can be said of."""
        return sum(bool(item.judged) for item in self.items)


def examine(folder: Path) -> Report:
    """Look at a folder.

    Args:
        folder: Searched to a limited depth; hidden folders and virtual environments are left out.

    Raises:
        NotADirectoryError: It is none.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder}: no such folder; name the one that your training writes to")
    names = list(_files(folder))
    left_out = f"more than {MOST_FILES:,} files; name a smaller folder" if len(names) >= MOST_FILES else ""
    recorded = [path for path in names if path.suffix == ".h5" and not rank_of(path)]
    logs = logs_among(names)
    if len(recorded) + len(logs) > MOST_JUDGED:
        left_out = left_out or f"{len(recorded) + len(logs)} runs and logs, of which {MOST_JUDGED} were opened"
    items = [_recording(path) for path in [*recorded, *logs][:MOST_JUDGED]]
    scripts = [item for path in names if path.suffix == ".py" and (item := _script(path, folder)) is not None]
    return Report([*items, *scripts[:MOST_SCRIPTS]], left_out)


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files under a folder, a limited number of them."""
    count = 0
    for home, folders, files in os.walk(folder):
        depth = len(Path(home).relative_to(folder).parts)
        inner = sorted(name for name in folders if not name.startswith(".") and name not in _NO_PLACE)
        folders[:] = inner if depth < DEEPEST else []
        for name in sorted(files):
            count += 1
            if count > MOST_FILES:
                return
            if not name.startswith("."):
                yield Path(home, name)


def _recording(path: Path) -> Item:
    """Return what can be said of a run file or a log."""
    kind: Kind = "run" if path.suffix == ".h5" else "log"
    if kind == "log" and path.is_file() and path.stat().st_size > _LOG_BYTES:
        return Item(kind, str(path), "log", problem=f"larger than {_LOG_BYTES >> 20} MiB; check it by name")
    try:
        with open_run(path) as run:
            diagnosis = diagnose(run, load_rules())
            steps, log = len(run), run.log
    except RunFileError as error:
        return Item(kind, str(path), "cannot be read", problem=str(error).removeprefix(f"{path}: "))
    reasons: dict[str, list[str]] = {}
    for each in diagnosis.judgements:
        if each.state != "judged":
            reasons.setdefault(each.reason, []).append(each.rule)
    whole = f"run file, {steps} steps, {diagnosis.ending.state}: loop and loss"
    what = f"{log} log, {steps} steps: loss only" if log else whole
    gaps = "; ".join(finding.message for finding in diagnosis.findings if finding.gap and finding.severity == "error")
    return Item(
        kind,
        str(path),
        what,
        judged=tuple(each.rule for each in diagnosis.judgements if each.state == "judged"),
        not_judged=tuple((reason, tuple(rules)) for reason, rules in reasons.items()),
        problem="" if not gaps else f"exit code 5 as it is: {gaps}",
        remedy=(f"loopscope check {path}",),
    )


def _script(path: Path, folder: Path) -> Item | None:
    """Return a training script that records nothing yet, with what would change that."""
    try:
        with path.open("rb") as file:
            text = file.read(_SCRIPT_BYTES)
    except OSError:
        return None
    if any(word in text for word in _WATCHED) or not any(all(word in text for word in each) for each in _TRAINS):
        return None
    name = path.relative_to(folder)
    if name.name.startswith("test_") or name.name == "conftest.py":
        return None
    return Item(
        "script",
        str(path),
        "trains, and records nothing of its loop",
        problem="its loop cannot be judged",
        remedy=(
            f'probe = loopscope.attach(model, "runs/{path.stem}.h5")   # before the first step',
            "probe.step(loss=loss)                             # after every optimizer step",
            f"or change nothing: loopscope smoke --steps 200 -- python {name}",
        ),
    )
