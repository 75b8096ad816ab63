"""Where a reviewer should look: the line of the checkout that a finding is about, and the parameters behind A̅.

A finding of a rule of the user's own points at that rule, one of a baseline at the baseline's file, and one about the
loop at the code that holds the loop, where the run says which that is and the checkout has it. Anything else has no
place: a shipped rule stands in no file of the user's, and a loss has no line.

Not covered: which change is at fault.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from ..rules.findings import Finding
from ..rules.grammar import loop_entry
from ..rules.rule_files import Rule
from ..rules.series import OF_THE_LINEAR_PART, OF_THE_LOOP
from ..runfile.commit import root_of

LONGEST: Final = 200  # characters of a name or a path
MOST_NAMES: Final = 8
MOST_LINES: Final = 1_000_000
_OF_A_BASELINE: Final = frozenset({"LS091", "LS092", "LS094"})


@dataclass(frozen=True, slots=True)
class LoopCode:
    """What a run says of the code of its loop.

    Attributes:
        body: Dotted name of the first module of the loop; empty where it is not known.
        a_bar_parameters: Dotted names of the parameters that A̅ is made of.
        file: A file of the project, relative to its root; empty where none is known.
        line: In that file, from 1.
        holds_loop: Whether the loop is there; else a line of the project that led to it, such as the one that attached.
    """

    body: str = ""
    a_bar_parameters: tuple[str, ...] = ()
    file: str = ""
    line: int = 0
    holds_loop: bool = False

    @property
    def words(self) -> str:
        """What is to be seen at file and line; empty where they are not known."""
        said = "the loop is in" if self.holds_loop else "the probe was attached from"
        return f"{said} {self.file}:{self.line}" if self.file else ""


UNKNOWN: Final = LoopCode()


@dataclass(frozen=True, slots=True)
class Spot:
    """A line of the checkout.

    Attributes:
        file: Relative to the root of the checkout where it is inside of it.
        line: From 1.
        column: From 1; 0 where only the line is known.
    """

    file: str
    line: int
    column: int = 0


def loop_code(info: Mapping[str, Any]) -> LoopCode:
    """Return what a run says of the code of its loop; its file is from elsewhere, so that only what fits is believed.

    >>> loop_code({"site": {"body": "mix"}, "loop_code": {"file": "../../x.py", "line": 3}})
    LoopCode(body='mix', a_bar_parameters=(), file='', line=0, holds_loop=False)
    """
    site, code, names = info.get("site"), info.get("loop_code"), info.get("a_bar_parameters")
    said: Mapping[str, Any] = code if isinstance(code, dict) else {}
    body = _short(site.get("body")) if isinstance(site, dict) else ""
    parameters = tuple(filter(None, map(_short, names)))[:MOST_NAMES] if isinstance(names, list) else ()
    file, line = _short(said.get("file")), said.get("line")
    inside = bool(file) and not PurePosixPath(file).is_absolute() and ".." not in PurePosixPath(file).parts
    if inside and isinstance(line, int) and not isinstance(line, bool) and 0 < line <= MOST_LINES:
        return LoopCode(body, parameters, file, line, said.get("holds_loop") is True)
    return LoopCode(body, parameters)


def _short(text: object) -> str:
    """Return a text that can be shown as a name; empty for anything else."""
    return text if isinstance(text, str) and len(text) <= LONGEST and text.isprintable() else ""


def spot(finding: Finding, code: LoopCode, rules: Sequence[Rule], rules_file: Path | None, baseline: Path | None,
         root: Path | None) -> Spot | None:  # fmt: skip
    """Return the line that a finding is about; None where there is none.

    Args:
        finding: What was found.
        code: What its run says of its loop.
        rules: The rules that were applied.
        rules_file: The user's rule file.
        baseline: The baseline that the run was compared with.
        root: The root of the checkout; None: paths stay as they are, and no code is pointed at.
    """
    rule = next((each for each in rules if each.id == finding.rule), None)
    place = None if rule is None else rule.place
    if rules_file is not None and place is not None and Path(place.file) == rules_file:
        return Spot(relative(rules_file, root), place.line, place.column)
    if baseline is not None and finding.rule in _OF_A_BASELINE:
        return Spot(relative(baseline, root), 1)
    if root is not None and code.file and reads_loop(rule) and (root / code.file).is_file():
        return Spot(code.file, code.line)
    return None


def words(finding: Finding, code: LoopCode, rules: Sequence[Rule]) -> str:
    """Return in words where to look for the cause of a finding about the loop; empty where that is not known.

    A̅ is named where the rule reads it, the loop where it reads another number of the loop.
    """
    rule = next((each for each in rules if each.id == finding.rule), None)
    if not reads_loop(rule) or rule is None:
        return ""
    linear = code.a_bar_parameters and rule.expr.names & OF_THE_LINEAR_PART
    what = f"A̅ is made of {', '.join(code.a_bar_parameters)}" if linear else ""
    what = what or (f"the loop begins at {code.body}" if code.body else "")
    return ", ".join(filter(None, (what, code.words)))


def reads_loop(rule: Rule | None) -> bool:
    """Return whether a rule is about the loop: whether it reads a number of it."""
    return rule is not None and any(name in OF_THE_LOOP or loop_entry(name) is not None for name in rule.expr.names)


def relative(path: Path, root: Path | None) -> str:
    """Return a path from the root of the checkout where it is inside of it; as it is otherwise.

    >>> relative(Path("/a/b/loopscope.toml"), Path("/a")), relative(Path("runs/a.h5"), None)
    ('b/loopscope.toml', 'runs/a.h5')
    """
    if root is not None and path.resolve().is_relative_to(root.resolve()):
        return path.resolve().relative_to(root.resolve()).as_posix()
    return path.as_posix()


def checkout(environment: Mapping[str, str], folder: Path) -> Path:
    """Return the root of what is checked out: what the CI says, else the repository around a folder, else the folder.

    >>> str(checkout({"GITHUB_WORKSPACE": "/checkout"}, Path("/")))
    '/checkout'
    """
    said = next((environment[name] for name in ("GITHUB_WORKSPACE", "CI_PROJECT_DIR") if environment.get(name)), "")
    return Path(said) if said else root_of(folder) or folder
