"""The experiment: which one change makes an alert go away, and everything that came with it.

The steps around an alert are run again, unchanged first: on a CPU the recorded numbers must come back bit for bit, or
nothing can be concluded. Then one thing is changed at a time. What is bad about a run is read from its recording by
the same rules as ever, in three parts: the alert itself, the rules about the loop, the rules about the loss. A change
is called the cause where it takes all of that away and no other change does; other random draws are tried too, so that
what was chance is not given a cause.

A cause takes its whole effect with it. Some changes weaken whatever happens, as half the learning rate does, and bring
a jump of the loss below a rule's limit without removing it. So a loss that jumped counts as well again only where
hardly anything of the jump is left: at most `LEFT_OVER` of it.

Not covered: causes that need two things at once, and causes that act before the first step that is run again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from ..rules.expression import parse
from ..rules.findings import Finding
from ..rules.judging import judge
from ..rules.rule_files import Rule, load_rules
from ..runfile.open import open_run
from ..runfile.run import Run
from .replayable import PLACEBO, Change, Replayable, first_difference

AFTER: Final = 80  # steps that are run again after the alert
BEFORE: Final = 200  # steps before it that are asked for, so that the rules have their baselines
LEFT_OVER: Final = 0.15  # of a jump of the loss where its cause is taken away: what the noise of a loss comes to
ONSET, CALM = 8, 20  # steps up to an alert in which a fault may have begun, and those before that it is compared with

LIMIT: Final = re.compile(r"(\w+) (>=|>) [\d.]+(?= and |$)")  # at the beginning of a rule: one number against another

Part = Literal["alert", "explosion", "loss"]
PARTS: Final[tuple[Part, ...]] = ("alert", "explosion", "loss")


class ReplayError(ValueError):
    """The recorded steps could not be run again as they were; the message says which number differs."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one replay came to.

    Attributes:
        change: Name of the change; empty for the unchanged replay.
        about: What was changed.
        bad: Which parts went wrong: the alert, the explosion of the loop, the loss.
        rules: Ids of the rules that fired in the window.
        last_loss: Mean loss of the last ten steps, nats.
        jump: How far the loss rose around the alert, nats; see `jump_of`.
    """

    change: str
    about: Change
    bad: frozenset[Part]
    rules: tuple[str, ...]
    last_loss: float
    jump: float = 0.0


@dataclass(frozen=True, slots=True)
class Explanation:
    """The result of the experiment.

    Attributes:
        rule: Id of the rule that fired.
        step: The step at which it fired.
        start: First step that was run again.
        stop: The step after the last one.
        unchanged: The replay without a change.
        outcomes: One for every change.
        cause: Name of the one change that removes everything; empty where there is none.
        verdict: One sentence.
    """

    rule: str
    step: int
    start: int
    stop: int
    unchanged: Outcome
    outcomes: tuple[Outcome, ...]
    cause: str
    verdict: str

    def as_dict(self) -> dict[str, Any]:
        """Return the explanation for JSON."""
        told = {
            **asdict(self),
            "unchanged": _plain(self.unchanged),
            "outcomes": [_plain(each) for each in self.outcomes],
        }
        return told


def explain(
    run: Run,
    again: Replayable,
    folder: Path,
    *,
    at: int | None = None,
    after: int = AFTER,
    rules: Sequence[Rule] | None = None,
    progress: Callable[[str, float], None] = lambda part, fraction: None,
) -> Explanation:
    """Find the cause of an alert by running its steps again with one thing changed at a time.

    Args:
        run: The recorded run.
        again: What runs its steps.
        folder: Where the replays are recorded, one run file each; made where it is missing.
        at: Step of the alert; default: the first error, or the first warning where there is none.
        after: Steps that are run after it.
        rules: Default: the shipped rules.
        progress: Called as ``progress(what, fraction)``.

    Raises:
        ReplayError: The unchanged replay is another run than the recorded one.
        ValueError: No rule fired, or none at that step.
    """
    rules = load_rules() if rules is None else rules
    finding = chosen_alert(run, rules, at)
    rule, step = finding.rule, finding.step
    symptom = symptom_of(finding, next(each for each in rules if each.id == rule))
    stop = min(step + 1 + after, int(run["step"][-1]) + 1)
    folder.mkdir(parents=True, exist_ok=True)
    names = ["", *again.changes]

    def outcome(number: int, change: str) -> tuple[Outcome, int]:
        about = again.changes[change] if change else Change("nothing")
        path = folder / f"{change or 'unchanged'}.h5"
        path.unlink(missing_ok=True)
        start = again.load(max(step - BEFORE, 0), change, path)
        try:
            for done in range(start, stop):
                progress(f"changed: {about.words}", (number + (done - start) / (stop - start)) / len(names))
                again.step()
        finally:
            again.close()
        with open_run(path) as replay:
            if not change and (differs := first_difference(run, replay, step)):
                raise ReplayError(
                    f"the recorded steps could not be run again as they were ({differs}), so that nothing can be "
                    "concluded; use the same machine, device, number of threads and versions"
                )
            return _outcome(replay, change, about, symptom, rules, step), start

    unchanged, start = outcome(0, "")
    if "alert" not in unchanged.bad:
        older = ", or keep older checkpoints (train.keep_checkpoints = 0)" if start else ""
        raise ReplayError(
            f"{rule} did not fire again in steps {start} to {stop - 1}: it needs more steps than were run; give it "
            f"more after the alert (--after){older}"
        )
    outcomes = tuple(
        with_what_is_left(unchanged, outcome(number, change)[0]) for number, change in enumerate(again.changes, start=1)
    )
    cause, verdict = conclude(unchanged, outcomes)
    return Explanation(rule, step, start, stop, unchanged, outcomes, cause, verdict)


def conclude(unchanged: Outcome, outcomes: Sequence[Outcome]) -> tuple[str, str]:
    """Return the cause, or the empty text, and the verdict in words.

    >>> bad = Outcome("", Change("nothing"), frozenset({"alert", "loss"}), ("LS010",), 5.0)
    >>> good = Outcome("batch", Change("these batches left out"), frozenset(), (), 3.0)
    >>> conclude(bad, [good, bad])[0]
    'batch'
    """
    removed = [each for each in outcomes if not each.bad]
    others = [each for each in removed if each.change != PLACEBO]
    went = _listed(sorted(unchanged.bad, key=PARTS.index))
    if not removed:
        partly = [each for each in outcomes if "alert" not in each.bad]
        hint = f"; the alert alone goes with: {_listed([each.about.words for each in partly])}" if partly else ""
        return "", f"cause not found: no single change removes the {went}{hint}"
    if len(others) < len(removed):
        return "", f"cause not found: other random draws remove the {went} too, so that it may have been chance"
    if len(removed) > 1:
        each = _listed([one.about.words for one in removed])
        return "", f"cause not found: each of these removes the {went}: {each}"
    (only,) = removed
    words = only.about.words
    if only.about.another_model and "explosion" not in unchanged.bad:
        return "", f"cause not found: {words} prevents the {went}, and so it might whatever the cause is"
    rest = f"none of the {len(outcomes) - 1} other changes does that"
    return only.change, f"cause: with {words}, {went} {'are' if len(unchanged.bad) > 1 else 'is'} gone; {rest}"


def jump_of(loss: NDArray[np.float64], steps: NDArray[np.int64], alert: int) -> float:
    """Return how far the loss rose above anything of the `CALM` steps before a fault can have begun, nats; at least 0.

    Args:
        loss: Of every step, nats; what is not a number has risen without end.
        steps: Their numbers.
        alert: Step of the alert; the fault has begun at most `ONSET` steps before it.

    >>> jump_of(np.array([3.1, 3.0, 3.2, 5.2, 3.0]), np.arange(10, 15), 14 + ONSET - 2)
    2.0
    """
    first = alert - ONSET + 1
    values = np.where(np.isnan(loss), np.inf, loss)
    before, after = values[(steps < first) & (steps >= first - CALM)], values[steps >= first]
    calm = before[np.isfinite(before)]
    return float(max(after.max() - calm.max(), 0.0)) if len(calm) and len(after) else 0.0


def with_what_is_left(unchanged: Outcome, outcome: Outcome) -> Outcome:
    """Return an outcome, its loss bad too where too much of a jump is left for its cause to have been removed.

    >>> before = Outcome("", Change("nothing"), frozenset({"alert", "loss"}), ("LS010",), 5.0, jump=4.0)
    >>> with_what_is_left(before, Outcome("rate", Change("half the rate"), frozenset(), (), 3.0, jump=1.0)).bad
    frozenset({'loss'})
    """
    if "loss" not in unchanged.bad or outcome.jump <= LEFT_OVER * unchanged.jump:
        return outcome
    return replace(outcome, bad=outcome.bad | {"loss"})


def chosen_alert(run: Run, rules: Sequence[Rule], at: int | None) -> Finding:
    """Return the finding to be explained: the first error, or the first warning, or what fired at a step."""
    fired = [each for each in judge(run, rules).findings if each.severity != "note" and each.state == "fired"]
    if not fired:
        raise ValueError("no rule fired in this run, so there is nothing to explain")
    if at is None:
        return next((each for each in fired if each.severity == "error"), fired[0])
    if (there := next((each for each in fired if each.step == at), None)) is None:
        told = ", ".join(f"{each.rule} at step {each.step}" for each in fired)
        raise ValueError(f"--at {at}: no rule fired at that step; there are {told}")
    return there


def symptom_of(finding: Finding, rule: Rule) -> Rule:
    """Return what is looked for in the replays of an alert: a rule that begins with a limit on one number is cut to it.

    A change of the architecture may keep a rule from firing by one of its other conditions (blocks that hold what the
    injection amplifies) while what it warns of is still there. A rule that begins otherwise, with a sum over steps or
    with a number of one loop, is looked for as it is.

    >>> rules = {rule.id: rule for rule in load_rules()}
    >>> [LIMIT.match(rules[name].expr.text) is not None for name in ("LS020", "LS018", "LS033")]
    [True, False, False]
    """
    limit = LIMIT.match(rule.expr.text)
    if limit is None:
        return replace(rule, id="symptom")
    quantity = parse(f"{limit[1]} {limit[2]} {finding.threshold!r}")
    return Rule("symptom", rule.name, quantity, rule.severity, hold=rule.hold)


def _outcome(replay: Run, change: str, about: Change, symptom: Rule, rules: Sequence[Rule], step: int) -> Outcome:
    """Read off a replay what went wrong in it."""
    about_loss = {each.id: _is_about_loss(each) for each in rules}
    findings = [each for each in judge(replay, [*rules, symptom]).findings if each.severity != "note"]
    fired = [each for each in findings if each.rule != symptom.id]
    bad: set[Part] = {"alert"} if len(fired) < len(findings) else set()
    for each in fired:
        if each.severity == "error" or about_loss[each.rule]:
            bad.add("loss" if about_loss[each.rule] else "explosion")
    loss = replay["loss"]
    names = tuple(dict.fromkeys(each.rule for each in fired))
    return Outcome(
        change, about, frozenset(bad), names, float(loss[-10:].mean()), jump_of(loss, np.asarray(replay["step"]), step)
    )


def _is_about_loss(rule: Rule) -> bool:
    """Whether a rule looks at nothing but what any trainer logs."""
    return all(name.startswith(("loss", "lr", "nonfinite", "scaler", "grad_norm")) for name in rule.expr.names)


def _listed(words: Sequence[str]) -> str:
    """Words as one would say them."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _plain(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome for JSON."""
    loss = outcome.last_loss
    return {
        "change": outcome.change,
        "words": outcome.about.words,
        "bad": [part for part in PARTS if part in outcome.bad],
        "rules": list(outcome.rules),
        "last_loss": loss if abs(loss) < float("inf") else None,
        "loss_jump": outcome.jump if outcome.jump < float("inf") else None,
    }
