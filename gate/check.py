"""The gate: rules over run files, a verdict for people and programs, and an exit code a CI job can trust.

What cannot be read, and what should have been judged and was not, are failures of their own and never a pass. One run's
failure costs that run its verdict, never the others theirs.

Not covered: what a baseline and a comparison are (``baseline``, ``compare``); how a verdict is shown.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..rules.diagnosis import Diagnosis, diagnose
from ..rules.findings import Finding
from ..rules.rule_files import Rule, load_rules, refuse_unknown_series, refuse_unknown_settings
from ..rules.scope import Said
from ..rules.series import KNOWN_NAMES, is_known, names_of
from ..runfile.layout import Severity
from ..runfile.open import open_run
from ..runfile.ranks.companions import separate_runs
from ..runfile.reader import Run, RunFileError
from ..runfile.until import until
from .baseline import Baseline, read_baseline
from .compare import Comparison, compare
from .paths import expand
from .result import GateResult, RunCheck
from .settings import settings_of
from .verdicts import Verdicts
from .where import loop_code

__all__ = ["GateResult", "RunCheck", "check_runs"]

Failed = Callable[[Path, Exception], None]


def check_runs(
    paths: Sequence[Path],
    *,
    rules_file: Path | None = None,
    fail_on: Severity = "error",
    min_steps: int | None = None,
    at_step: int | None = None,
    replay: bool = False,
    side_by_side: bool = False,
    baseline: Path | None = None,
    on_failure: Failed | None = None,
) -> GateResult:
    """Apply the rules to run files.

    Args:
        paths: Run files, folders of them, patterns, and logs of other tools; a rank's file is part of its run where
            that is given too, else checked alone.
        rules_file: TOML file that changes or adds rules.
        fail_on: Least severity that fails a run.
        min_steps: Steps a run must have; an interrupted run that has them may pass.
        at_step: Judge every run as if it had ended after this step.
        replay: Have reports tell when each rule would have fired, and how long before the loss.
        side_by_side: Compare the runs with each other.
        baseline: A baseline file to compare them with.
        on_failure: Called with a defect of ours that cost a run its verdict, while its traceback is at hand.

    Raises:
        RuleError: The rule file is not valid, or names a series that none of the runs has.
        BaselineError: The baseline is not valid.
    """
    rules = load_rules(rules_file)
    runs = separate_runs(expand(paths))
    _refuse_misspelt(runs, rules)
    known = None if baseline is None else read_baseline(baseline)
    verdicts = Verdicts(rules, min_steps) if at_step is None and known is None else None
    judge = _Judge(rules, min_steps, at_step, known, verdicts, on_failure)
    checks = [judge.check(path) for path in runs]
    comparison = None
    if side_by_side:
        comparison, checks = _compare(checks, at_step)
    digest = "" if rules_file is None else hashlib.sha256(rules_file.read_bytes()).hexdigest()
    return GateResult(checks, fail_on, tuple(rules), rules_file, digest, comparison, at_step, replay, baseline)


@dataclass(frozen=True, slots=True)
class _Judge:
    """What one check judges every run by."""

    rules: Sequence[Rule]
    min_steps: int | None
    at_step: int | None
    baseline: Baseline | None
    verdicts: Verdicts | None
    on_failure: Failed | None

    def check(self, path: Path) -> RunCheck:
        """Return what the gate says of one run, whatever its file holds."""
        try:
            if self.verdicts is not None and (known := self.verdicts.find(path)) is not None:
                return known
            with open_run(path) as run:
                judged = self._judged(run if self.at_step is None else until(run, self.at_step), path)
                if self.verdicts is not None:
                    self.verdicts.keep(run, judged)
                return judged
        except RunFileError as error:
            return RunCheck(path, None, str(error))
        except Exception as error:  # a defect of ours costs this run its verdict and no other
            if self.on_failure is not None:
                self.on_failure(path, error)
            said = f"{path}: internal error: {type(error).__name__}: {error}"
            return RunCheck(path, None, said, internal=True)

    def _judged(self, run: Run, path: Path) -> RunCheck:
        diagnosis = diagnose(run, self.rules, min_steps=self.min_steps)
        if self.baseline is not None:
            diagnosis = with_findings(diagnosis, self.baseline.findings(run))
            compared = self.baseline.judgement(run)
            diagnosis = replace(diagnosis, judgements=[*diagnosis.judgements, *([compared] if compared else [])])
        commit = run.info.get("commit")
        return RunCheck(
            path,
            diagnosis,
            configuration=settings_of(run.info),
            commit=commit[:64] if isinstance(commit, str) else "",
            code=loop_code(run.info),
        )


def _compare(checks: Sequence[RunCheck], at_step: int | None) -> tuple[Comparison, list[RunCheck]]:
    """Return the runs that could be judged side by side, and all checks with what that found."""
    opened: dict[int, Run] = {}
    try:
        for number, check in enumerate(checks):
            if check.diagnosis is not None and check.diagnosis.steps:
                run = open_run(check.path)
                opened[number] = run if at_step is None else until(run, at_step)
        comparison = compare(list(opened.values()))
        told = {number: comparison.findings(place) for place, number in enumerate(opened)}
    finally:
        for run in opened.values():
            run.close()
    return comparison, [
        replace(check, diagnosis=with_findings(check.diagnosis, told[number]))
        if check.diagnosis is not None and number in told
        else check
        for number, check in enumerate(checks)
    ]


def with_findings(diagnosis: Diagnosis, more: Sequence[Finding]) -> Diagnosis:
    """Return a diagnosis with further findings in their places."""
    return replace(diagnosis, findings=sorted([*diagnosis.findings, *more], key=lambda finding: finding.step))


def _refuse_misspelt(paths: Sequence[Path], rules: Sequence[Rule]) -> None:
    """Refuse rules over series and settings that none of the runs has; accept all where no run can be read."""
    strange = [rule for rule in rules if rule.only or rule.except_ or not all(map(is_known, rule.expr.names))]
    if not strange:
        return
    known, settings = set(KNOWN_NAMES), []
    for path in paths:
        try:
            with open_run(path) as run:
                known |= set(names_of(run))
                settings.append(Said(run.info))
        except Exception:
            continue  # its own check tells what is wrong with it
    if settings:
        refuse_unknown_series(strange, known)
        refuse_unknown_settings(strange, settings)
