"""The ``rules`` command: lists rules, explains one, checks rule files, and tries a file over recorded runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from ..gate.result import FAILED, NOTHING, PASSED, UNREADABLE
from ..rules.diagnosis import with_leads
from ..rules.findings import Finding, Judgement
from ..rules.judging import judge
from ..rules.pages import by_itself, page, page_name
from ..rules.rule_files import (
    BUILT_IN,
    SEVERITIES,
    Rule,
    RuleError,
    find_rule_file,
    load_rules,
    refuse_unknown_series,
    refuse_unknown_settings,
    rules_named_in,
)
from ..rules.scope import Said, Scope
from ..rules.series import KNOWN_NAMES, names_of
from ..runfile.layout import RunFileError, Severity
from ..runfile.open import open_run
from ..runfile.ranks.companions import separate_runs
from ..runfile.text import plain
from .output import complain, say

VERSION: Final = 1
USAGE: Final = "expected nothing, the id of a rule, 'test FILE RUN…', or 'validate FILE…'"


def rule_file(given: Path | None) -> Path | None:
    """Return the rule file to use: the one given, or the project's, and say where that is."""
    if given is not None:
        return given
    project = find_rule_file(Path.cwd())
    if project is not None:
        complain(f"rules of {project}")
    return project


def rules(words: Sequence[str], *, file: Path | None, fail_on: Severity, as_json: bool) -> int:
    """Do what the words ask for and return the exit code.

    Args:
        words: Nothing, or a rule's id, or ``test FILE RUN…``, or ``validate FILE…``.
        file: A rule file instead of the project's.
        fail_on: Least severity that fails a test.
        as_json: Print one JSON object.

    Raises:
        ValueError: The words ask for nothing that there is, or a rule file is not valid.
    """
    match list(words):
        case []:
            return _list(load_rules(rule_file(file)), as_json=as_json)
        case ["test", tried, _, *_]:
            return _test(Path(tried), [Path(each) for each in words[2:]], fail_on=fail_on, as_json=as_json)
        case ["validate", _, *_]:
            return _validate([Path(each) for each in words[1:]])
        case ["test" | "validate", *_]:
            raise ValueError(USAGE)
        case [identifier]:
            return _explain(identifier, load_rules(rule_file(file)), as_json=as_json)
        case _:
            raise ValueError(f"{' '.join(words)}: {USAGE}")


def _list(rules: Sequence[Rule], *, as_json: bool) -> int:
    """Print the rules, one a line."""
    if as_json:
        say(json.dumps({"version": VERSION, "rules": [_described(rule) for rule in rules]}, indent=2))
        return PASSED
    rows = [("id", "name", "severity", "for", "condition", "page")]
    rows += [(r.id, r.name, r.severity, str(r.hold), r.expr.text, page_name(r.id) or "-") for r in rules]
    rows += [(each, "no expression: see its page", "", "", "", page_name(each) or "-") for each in sorted(BUILT_IN)]
    say(_table(rows))
    say("\nexplain one: loopscope rules LS020    try a file on runs: loopscope rules test FILE RUN")
    return PASSED


def _explain(identifier: str, rules: Sequence[Rule], *, as_json: bool) -> int:
    """Print what there is to know of a rule: its page, and how it is set here."""
    rule = next((each for each in rules if each.id == identifier), None)
    text = page(identifier)
    if rule is None and not text:
        near = get_close_matches(identifier, [*(each.id for each in rules), *BUILT_IN], 1)
        hint = f"; did you mean {near[0]}?" if near else "; loopscope rules lists them"
        raise ValueError(f"there is no rule {identifier}{hint}")
    if as_json:
        known = _described(rule) if rule is not None else {"id": identifier}
        say(json.dumps({"version": VERSION, **known, "page_text": text}, indent=2))
        return PASSED
    if text:
        _show_markdown(by_itself(text))
    if rule is not None and (not text or _differs(rule)):
        say("As it is set here:" if text else plain(f"{rule.id} {rule.name}"))
        say("\n".join(f"  {key} = {plain(json.dumps(value, ensure_ascii=False))}" for key, value in _settings(rule)))
    return PASSED


def _differs(rule: Rule) -> bool:
    """Whether a rule is set otherwise than it is shipped."""
    shipped = next((each for each in load_rules() if each.id == rule.id), None)
    return shipped is None or list(_settings(shipped)) != list(_settings(rule))


def _settings(rule: Rule) -> Iterable[tuple[str, Any]]:
    """Yield the settings of a rule as a rule file has them."""
    yield from (("expr", rule.expr.text), ("for", rule.hold), ("keep_firing_for", rule.keep_firing_for))
    yield from (("severity", rule.severity), ("message", rule.message), ("remedy", rule.remedy))
    yield from (("only", _as_table(rule.only)), ("except", _as_table(rule.except_)), ("actions", list(rule.actions)))


def _as_table(scope: Scope) -> dict[str, list[str]]:
    return {key: list(patterns) for key, patterns in scope.patterns}


def _described(rule: Rule) -> dict[str, Any]:
    """Return a rule for JSON."""
    return {"id": rule.id, "name": rule.name, **dict(_settings(rule)), "page": page_name(rule.id) or None,
            "place": None if rule.place is None else str(rule.place)}  # fmt: skip


def _validate(files: Sequence[Path]) -> int:
    """Check rule files; tell of the first mistake of each."""
    wrong = 0
    for file in files:
        try:
            named = rules_named_in(file)
        except RuleError as error:
            complain(str(error))
            wrong += 1
        else:
            say(plain(f"{file}: {len(named)} rules, valid"))
    return 2 if wrong else PASSED


@dataclass(frozen=True, slots=True)
class _Tried:
    """What a file's rules say of one run."""

    path: Path
    judgements: Sequence[Judgement]
    findings: dict[str, Finding]
    leads: dict[str, int | None]
    error: str = ""


def _test(file: Path, paths: Sequence[Path], *, fail_on: Severity, as_json: bool) -> int:
    """Try the rules of a file on runs and print what each says of each."""
    named = set(rules_named_in(file))
    rules = [rule for rule in load_rules(file) if rule.id in named]
    if not rules:
        raise RuleError(f"{plain(file)}: has no rule to try")
    runs = _run_files(paths)
    _refuse_misspelt(rules, runs)
    tried = [_try(path, rules) for path in runs]
    code = _exit_code(tried, fail_on)
    if as_json:
        shown = {"version": VERSION, "file": str(file), "fail_on": fail_on, "exit_code": code}
        say(json.dumps({**shown, "runs": [_run_as_json(each) for each in tried]}, indent=2, allow_nan=False))
        return code
    rows: list[tuple[str, ...]] = [("run", "rule", "severity", "judged", "fired", "times", "lead")]
    for each in tried:
        rows += [_row(each, judgement) for judgement in each.judgements]
    say(_table(rows))
    for each in tried:
        if each.error:
            complain(each.error)
    return code


def _run_files(paths: Sequence[Path]) -> list[Path]:
    """Return the run files that paths name, those in folders too."""
    files = [file for path in paths for file in (sorted(path.rglob("*.h5")) if path.is_dir() else [path])]
    if not files:
        raise ValueError(f"{', '.join(str(path) for path in paths)}: no run file there")
    return separate_runs(files)


def _refuse_misspelt(rules: Sequence[Rule], runs: Sequence[Path]) -> None:
    """Refuse names that none of the runs has; says nothing where no run can be read."""
    known, said, read = set(KNOWN_NAMES), [], 0
    for path in runs:
        try:
            with open_run(path) as run:
                known |= set(names_of(run))
                said.append(Said(run.info))
                read += 1
        except RunFileError:
            continue
    if read:
        refuse_unknown_series(rules, known)
        refuse_unknown_settings(rules, said)


def _try(path: Path, rules: Sequence[Rule]) -> _Tried:
    """Return what rules say of one run."""
    try:
        with open_run(path) as run:
            judged = judge(run, rules)
            findings = {each.rule: each for each in with_leads(run, judged.findings)}
    except RunFileError as error:
        return _Tried(path, [], {}, {}, str(error))
    leads = {rule: each.lead for rule, each in findings.items()}
    return _Tried(path, judged.judgements, findings, leads)


def _exit_code(tried: Sequence[_Tried], fail_on: Severity) -> int:
    """Return the exit code, as ``check`` would."""
    serious = SEVERITIES[SEVERITIES.index(fail_on) :]
    if any(each.error for each in tried):
        return UNREADABLE
    if any(j.state == "no data" and j.severity in serious for each in tried for j in each.judgements):
        return NOTHING
    fired = any(f.state == "fired" and f.severity in serious for each in tried for f in each.findings.values())
    return FAILED if fired else PASSED


def _row(tried: _Tried, judgement: Judgement) -> tuple[str, ...]:
    """Return one line of the table: a rule and a run."""
    head = (str(tried.path), judgement.rule, judgement.severity)
    if judgement.state != "judged":
        return (*head, f"{judgement.state}: {judgement.reason}", "", "", "")
    fired = tried.findings.get(judgement.rule)
    steps = f"{judgement.steps} steps"
    if fired is None:
        return (*head, steps, "-", "", "")
    if fired.state == "pending":
        return (*head, steps, f"pending, {fired.held} of {fired.hold} steps", "", "")
    lead = tried.leads[judgement.rule]
    return (*head, steps, f"step {fired.step}", str(fired.episodes), "-" if lead is None else f"{lead} steps")


def _run_as_json(tried: _Tried) -> dict[str, Any]:
    """Return what rules say of one run for JSON."""
    said = [{**judgement.as_dict(), "finding": fired.as_dict() if fired is not None else None,
             "lead": tried.leads.get(judgement.rule)}
            for judgement in tried.judgements
            for fired in [tried.findings.get(judgement.rule)]]  # fmt: skip
    return {"path": str(tried.path), "error": tried.error or None, "rules": said}


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as lines with aligned columns; every cell is one harmless line."""
    cells = [[plain(cell) for cell in row] for row in rows]
    widths = [min(max(len(row[column]) for row in cells), 60) for column in range(len(cells[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                     for row in cells)  # fmt: skip


def _show_markdown(text: str) -> None:
    """Print a page of ours: as Markdown in a terminal, as it stands into a pipe."""
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console()
    if not console.is_terminal:
        say(text)
        return
    console.print(Markdown(text, hyperlinks=False))
