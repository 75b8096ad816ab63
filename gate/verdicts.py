"""Keeps verdicts of finished runs beside them, so that judging hundreds of old runs again costs next to nothing.

A verdict lies in ``.a.h5.verdict.json`` beside ``a.h5`` and counts only for the same file, of the same size and times
of change, judged by the same rules and the same source of loopscope. It is signed with a key in this user's cache
folder: a verdict that came with a file from elsewhere, whatever it says, is not believed. A key counts only where it is
a file of this user that nobody else can read or write, because whoever knows it can sign. The folder of a run may be
open to others: what lies there is read only where it is a small file, and never written through a link. The files are
safe to delete, and where none can be written the run is judged as if there were none.

Not covered: live and interrupted runs, and runs of several ranks, whose files change apart from each other. Who runs
code as this user can sign verdicts, and could as well change the rules or the tool.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import json
import os
import secrets
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, Final

from ..rules.diagnosis import Diagnosis
from ..rules.findings import Finding, Judgement
from ..rules.risk import Part, Risk
from ..rules.rule_files import Rule
from ..runfile.ending import Ending
from ..runfile.rank_names import rank_files
from ..runfile.reader import Run
from .result import RunCheck
from .where import LoopCode

LARGEST: Final = 1 << 20  # bytes of a verdict
_KEY_BYTES: Final = 32


class Verdicts:
    """The verdicts that some rules give.

    Args:
        rules: The rules.
        min_steps: Steps that are enough, as given to the gate.
    """

    def __init__(self, rules: Sequence[Rule], min_steps: int | None) -> None:
        said = [(r.id, r.name, r.expr.text, r.severity, r.hold, r.keep_firing_for, r.message, r.remedy,
                 r.only.patterns, r.except_.patterns) for r in rules]  # fmt: skip
        self._rules = hashlib.sha256(json.dumps([said, min_steps]).encode()).hexdigest()
        self._looked_for: dict[Path, list[Any]] = {}  # stamps of the files that no verdict was found for

    def find(self, path: Path) -> RunCheck | None:
        """Return the verdict on a run as it is now; None where there is none to believe."""
        key = _key()
        if key is None:
            return None
        try:
            self._looked_for[path] = self._stamp(path)
            content, _ = _read(_beside(path), LARGEST)
            kept = json.loads(content)
            body, signature = kept["body"], kept["signature"]
            if not hmac.compare_digest(signature, _signature(key, body)):
                return None
            content = json.loads(body)
            same = content["stamp"] == self._looked_for[path] and not rank_files(path)
            if not same:
                return None
            diagnosis = _diagnosis(content["diagnosis"])
            code = LoopCode(**{**content["code"], "a_bar_parameters": tuple(content["code"]["a_bar_parameters"])})
            about = {"configuration": content["configuration"], "commit": content["commit"], "code": code}
            return RunCheck(path, diagnosis, **about)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None

    def keep(self, run: Run, check: RunCheck) -> None:
        """Keep the verdict on a finished run of one file that is still as it was when `find` looked for one."""
        key, diagnosis = _key(), check.diagnosis
        alone = len(run.ranks) == 1 and run.info.get("world_size") in (None, 1)
        if run.log or key is None or diagnosis is None or diagnosis.ending.state != "finished" or not alone:
            return
        with suppress(OSError, ValueError):
            stamp = self._stamp(run.path)
            if stamp != self._looked_for.get(run.path):  # it changed while it was judged
                return
            about = {"configuration": dict(check.configuration), "commit": check.commit, "code": check.code}
            body = json.dumps({"stamp": stamp, "diagnosis": diagnosis, **about}, default=_fields)
            beside = _beside(run.path)
            part = beside.with_name(f"{beside.name}.{secrets.token_hex(8)}")
            _write_new(part, json.dumps({"body": body, "signature": _signature(key, body)}).encode(), 0o640)
            part.replace(beside)

    def _stamp(self, path: Path) -> list[Any]:
        """Return what changes whenever the verdict might."""
        status = path.stat()
        file = [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        return [*file, self._rules, _source()]


def _beside(path: Path) -> Path:
    """Return where the verdict on a run lies."""
    return path.with_name(f".{path.name}.verdict.json")


@cache
def _source() -> str:
    """Return what tells the code that judges from every other: its version, and its files as they are."""
    from .. import __version__

    here = Path(__file__).parent.parent
    files = [path for folder in ("rules", "gate", "dynamics", "runfile") for path in (here / folder).rglob("*.[pt]*")]
    stats = sorted((str(path.relative_to(here)), path.stat().st_size, path.stat().st_mtime_ns) for path in files
                   if path.suffix in (".py", ".toml"))  # fmt: skip
    return hashlib.sha256(json.dumps([__version__, stats]).encode()).hexdigest()


def _signature(key: bytes, body: str) -> str:
    return hmac.new(key, body.encode(), "sha256").hexdigest()


@cache
def _key() -> bytes | None:
    """Return this user's key, made when it is first needed; None where there is no place for it."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "loopscope"
    path = folder / "verdict-key"
    with suppress(OSError, RuntimeError):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with suppress(FileExistsError):
            _write_new(path, secrets.token_bytes(_KEY_BYTES), 0o600)
        key, status = _read(path, _KEY_BYTES)
        own = status.st_uid == os.geteuid() and not status.st_mode & 0o077
        return key if own and len(key) == _KEY_BYTES else None
    return None


def _read(path: Path, largest: int) -> tuple[bytes, os.stat_result]:
    """Return what a file holds and what the system says of it; raise ``OSError`` for a link, a pipe or a large file."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > largest:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return file.read(largest), status


def _write_new(path: Path, content: bytes, mode: int) -> None:
    """Write a file that is not there yet, not even as a link."""
    made = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    with os.fdopen(made, "wb") as file:
        file.write(content)


def _fields(value: Any) -> dict[str, Any]:
    """Return the fields of a dataclass, for JSON; `dataclasses.asdict` would copy all of them first."""
    return {field.name: getattr(value, field.name) for field in fields(value)}


def _diagnosis(kept: dict[str, Any]) -> Diagnosis:
    """Return a diagnosis from its fields."""
    parts = {
        "findings": [Finding(**each) for each in kept["findings"]],
        "judgements": [Judgement(**each) for each in kept["judgements"]],
        "ending": Ending(**kept["ending"]),
        "risk": Risk(**{**kept["risk"], "parts": tuple(Part(**each) for each in kept["risk"]["parts"])}),
    }
    return Diagnosis(**{**kept, **parts})
