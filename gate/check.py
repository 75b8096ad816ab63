"""The gate: rules over run files, a verdict for people and programs, and an exit code a CI job can trust.

What cannot be read, and what should have been judged and was not, are failures of their own and never a pass. One run's
failure costs that run its verdict, never the others theirs.

Not covered: comparison with a committed baseline.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ..rules.diagnosis import diagnose
from ..rules.rule_files import Rule, load_rules, refuse_unknown_series
from ..rules.series import KNOWN_NAMES, names_of
from ..runfile.layout import Severity
from ..runfile.open import open_run
from ..runfile.ranks.companions import separate_runs
from ..runfile.reader import RunFileError
from .result import GateResult, RunCheck
from .verdicts import Verdicts

__all__ = ["GateResult", "RunCheck", "check_runs"]

Failed = Callable[[Path, Exception], None]


def check_runs(
    paths: Sequence[Path],
    *,
    rules_file: Path | None = None,
    fail_on: Severity = "error",
    min_steps: int | None = None,
    on_failure: Failed | None = None,
) -> GateResult:
    """Apply the rules to run files.

    Args:
        paths: Run files; a rank's file is part of its run where that is given too, else checked alone.
        rules_file: TOML file that changes or adds rules.
        fail_on: Least severity that fails a run.
        min_steps: Steps a run must have; an interrupted run that has them may pass.
        on_failure: Called with a defect of ours that cost a run its verdict, while its traceback is at hand.

    Raises:
        RuleError: The rule file is not valid, or names a series that none of the runs has.
    """
    rules = load_rules(rules_file)
    runs = separate_runs(paths)
    _refuse_unknown_series(runs, rules)
    verdicts = Verdicts(rules, min_steps)
    checks = [_check(path, rules, min_steps, verdicts, on_failure) for path in runs]
    return GateResult(checks, fail_on, tuple(rules), rules_file)


def _check(
    path: Path, rules: Sequence[Rule], min_steps: int | None, verdicts: Verdicts, on_failure: Failed | None
) -> RunCheck:
    """Return what the gate says of one run, whatever its file holds."""
    try:
        if (known := verdicts.find(path)) is not None:
            return RunCheck(path, known)
        with open_run(path) as run:
            diagnosis = diagnose(run, rules, min_steps=min_steps)
            verdicts.keep(run, diagnosis)
            return RunCheck(path, diagnosis)
    except RunFileError as error:
        return RunCheck(path, None, str(error))
    except Exception as error:  # a defect of ours costs this run its verdict and no other
        if on_failure is not None:
            on_failure(path, error)
        said = f"{path}: internal error: {type(error).__name__}: {error}"
        return RunCheck(path, None, said, internal=True)


def _refuse_unknown_series(paths: Sequence[Path], rules: Sequence[Rule]) -> None:
    """Refuse rules over names that none of the runs has; says nothing where no run can be read."""
    strange = [rule for rule in rules if not rule.expr.names <= KNOWN_NAMES]
    if not strange:
        return
    known = set(KNOWN_NAMES)
    read = 0
    for path in paths:
        try:
            with open_run(path) as run:
                known |= set(names_of(run))
                read += 1
        except Exception:
            continue  # its own check tells what is wrong with it
    if read:
        refuse_unknown_series(strange, known)
