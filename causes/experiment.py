"""The experiment: which one change makes an alert go away, and everything that came with it.

The steps around an alert are run again, unchanged first: on a CPU the recorded numbers must come back bit for bit, or
nothing can be concluded. Then one thing is changed at a time. What is bad about a run is read from its recording by
the same rules as ever, in three parts: the alert itself, the rules about the loop, the rules about the loss. A change
is called the cause where it takes all of that away and no other change does; other random draws are tried too, so that
what was chance is not given a cause.

A cause takes its whole effect with it. Some changes weaken whatever happens, as half the learning rate does, and bring
a jump of the loss below a rule's limit without removing it. So a loss that jumped counts as well again only where
hardly anything of the jump is left: at most `LEFT_OVER` of it. Other changes hide what happens, as norms in the loop do
with an input of the loop that grows without end. So an input that grows `GROWN`-fold is an explosion too, and is gone
only where at most `LEFT_OVER` of the growth is left, as a logarithm.

Not covered: causes that need two things at once; causes that act before the first step that is run again; a second
fault within the steps that are run again, which stays whatever is changed about the first one.
"""

from __future__ import annotations

import math
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
GROWN: Final = 100  # times that the loop's input has grown where that is an explosion; LS032 says it of the last state
GROWN_FOR: Final = 20  # steps for which it must stay as large, as in LS032
ONSET, CALM = 8, 20  # steps up to an alert in which a fault may have begun, and those before that it is compared with

LIMIT: Final = re.compile(r"(\w+) (>=|>) [\d.]+(?= and |$)")  # at the beginning of a rule: one number against another

Part = Literal["alert", "explosion", "loss"]
PARTS: Final[tuple[Part, ...]] = ("alert", "explosion", "loss")


NOTHING: Final = Change("nothing")


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
        jump: How far the loss rose, nats; see `jump_of`.
        growth: Natural logarithm of how many times the loop's input grew; see `growth_of`.
    """

    change: str
    about: Change
    bad: frozenset[Part]
    rules: tuple[str, ...]
    last_loss: float
    jump: float = 0.0
    growth: float = 0.0


@dataclass(frozen=True, slots=True)
class Alert:
    """A rule that fired in the recorded run, and the step at which it did."""

    rule: str
    step: int

    def __str__(self) -> str:
        """Return it as it stands in a sentence."""
        return f"{self.rule} at step {self.step}"


@dataclass(frozen=True, slots=True)
class Symptoms:
    """What is looked for in every replay.

    Attributes:
        alert: What the alert that is explained comes to in a replay; see `symptom_of`.
        rules: The rules of the gate.
        loss_step: Step at which the loss began to be bad in the unchanged replay; the alert's, where it was not.
    """

    alert: Rule
    rules: Sequence[Rule]
    loss_step: int


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
        other_alerts: What else fired in the recorded run, warnings and errors, first ones first.
    """

    rule: str
    step: int
    start: int
    stop: int
    unchanged: Outcome
    outcomes: tuple[Outcome, ...]
    cause: str
    verdict: str
    other_alerts: tuple[Alert, ...] = ()

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
    before: int = BEFORE,
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
        before: Steps that are run before it, at least; those from the first one where the run is shorter.
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
    symptoms = Symptoms(symptom_of(finding, next(each for each in rules if each.id == rule)), rules, step)
    stop = min(step + 1 + after, int(run["step"][-1]) + 1)
    replays = _Replays(again, folder, max(step - before, 0), stop, progress)
    path, start = replays.run("")
    with open_run(path) as replay:
        if differs := first_difference(run, replay, step):
            raise ReplayError(
                f"the recorded steps could not be run again as they were ({differs}), so that nothing can be "
                "concluded; use the same machine, device, number of threads and versions"
            )
        symptoms = replace(symptoms, loss_step=_loss_step(replay, symptoms))
        unchanged = _outcome(replay, "", NOTHING, symptoms)
    if "alert" not in unchanged.bad:
        older = ", or keep older checkpoints (train.keep_checkpoints = 0)" if start else ""
        raise ReplayError(
            f"{rule} did not fire again in steps {start} to {stop - 1}: it needs more steps than were run; give it "
            f"more after the alert (--after){older}"
        )
    outcomes = []
    for change, about in again.changes.items():
        with open_run(replays.run(change)[0]) as replay:
            outcomes.append(with_what_is_left(unchanged, _outcome(replay, change, about, symptoms)))
    cause, verdict = conclude(unchanged, outcomes)
    others = tuple(Alert(each.rule, each.step) for each in alerts(run, rules) if each != finding)
    return Explanation(rule, step, start, stop, unchanged, tuple(outcomes), cause, verdict, others)


@dataclass(frozen=True, slots=True)
class _Replays:
    """The steps around an alert, run again as often as is asked for.

    Attributes:
        again: What runs them.
        folder: Where they are recorded; made where it is missing.
        wanted: First step that is wanted.
        stop: The step after the last one.
        progress: Told which change is tried, and which share of all is done.
    """

    again: Replayable
    folder: Path
    wanted: int
    stop: int
    progress: Callable[[str, float], None]

    def run(self, change: str) -> tuple[Path, int]:
        """Run the steps with one thing changed, or nothing; return the recording and the first step."""
        names = ["", *self.again.changes]
        words = f"changed: {self.again.changes[change].words if change else NOTHING.words}"
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{change or 'unchanged'}.h5"
        path.unlink(missing_ok=True)
        start = self.again.load(self.wanted, change, path)
        try:
            for done in range(start, self.stop):
                share = (done - start) / (self.stop - start)
                self.progress(words, (names.index(change) + share) / len(names))
                self.again.step()
        finally:
            self.again.close()
        return path, start


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
        return "", f"cause not found: no single change removes the {went}{_what_comes_near(unchanged, outcomes)}"
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


def _what_comes_near(unchanged: Outcome, outcomes: Sequence[Outcome]) -> str:
    """Return what some change does, though it does not remove everything; the end of a sentence, or nothing."""
    silent = [each for each in outcomes if "alert" not in each.bad]
    if any(each.change == PLACEBO for each in silent):
        return "; the alert itself goes with other random draws too, so that it may have been chance"
    told = ""
    if worse := [each for each in silent if not each.bad & unchanged.bad]:
        new = _listed(sorted({part for each in worse for part in each.bad}, key=PARTS.index))
        told += f"; it goes with: {_listed([each.about.words for each in worse])}, but there the {new} goes wrong"
    if partly := [each for each in silent if each.bad & unchanged.bad]:
        told += f"; the alert alone goes with: {_listed([each.about.words for each in partly])}"
    return told


def jump_of(loss: NDArray[np.float64], steps: NDArray[np.int64], seen: int) -> float:
    """Return how far the loss rose above anything of the `CALM` steps before a fault can have begun, nats; at least 0.

    Args:
        loss: Of every step, nats; what is not a number has risen without end.
        steps: Their numbers.
        seen: Step at which the loss was seen to be bad; the fault has begun at most `ONSET` steps before it.

    >>> jump_of(np.array([3.1, 3.0, 3.2, 5.2, 3.0]), np.arange(10, 15), 14 + ONSET - 2)
    2.0
    """
    first = seen - ONSET + 1
    values = np.where(np.isnan(loss), np.inf, loss)
    before, after = values[(steps < first) & (steps >= first - CALM)], values[steps >= first]
    calm = before[np.isfinite(before)]
    return float(max(after.max() - calm.max(), 0.0)) if len(calm) and len(after) else 0.0


def growth_of(norm: NDArray[np.float64]) -> float:
    """Return by how much a norm grew and stayed so for `GROWN_FOR` steps, a natural logarithm; at least 0.

    >>> round(math.exp(growth_of(np.array([2.0, *[200.0] * GROWN_FOR, 5.0]))))
    100
    """
    known = norm[np.isfinite(norm) & (norm > 0)]
    if len(known) < GROWN_FOR:
        return 0.0
    recent = np.lib.stride_tricks.sliding_window_view(known, GROWN_FOR).min(axis=1)
    lowest = np.minimum.accumulate(known)[GROWN_FOR - 1 :]
    return float(np.log(recent / lowest).max())


def with_what_is_left(unchanged: Outcome, outcome: Outcome) -> Outcome:
    """Return an outcome, bad too where too much of a jump or a growth is left for its cause to have been removed.

    >>> before = Outcome("", Change("nothing"), frozenset({"alert", "loss"}), ("LS010",), 5.0, jump=4.0)
    >>> with_what_is_left(before, Outcome("rate", Change("half the rate"), frozenset(), (), 3.0, jump=1.0)).bad
    frozenset({'loss'})
    """
    left: set[Part] = set()
    if "loss" in unchanged.bad and outcome.jump > LEFT_OVER * unchanged.jump:
        left.add("loss")
    if unchanged.growth >= math.log(GROWN) and outcome.growth > LEFT_OVER * unchanged.growth:
        left.add("explosion")
    return replace(outcome, bad=outcome.bad | left)


def chosen_alert(run: Run, rules: Sequence[Rule], at: int | None) -> Finding:
    """Return the finding to be explained: the first error, or the first warning, all of them or those at a step.

    Raises:
        ValueError: No rule fired, or none at that step; the message says which ones did.
    """
    fired = alerts(run, rules)
    if not fired:
        raise ValueError("no rule gave a warning or an error in this run, so that there is nothing to explain")
    there = [each for each in fired if at is None or each.step == at]
    if not there:
        told = ", ".join(str(Alert(each.rule, each.step)) for each in fired)
        raise ValueError(f"--at {at}: no rule gave a warning or an error at that step; there are {told}")
    return next((each for each in there if each.severity == "error"), there[0])


def alerts(run: Run, rules: Sequence[Rule]) -> list[Finding]:
    """Return the warnings and errors that fired in a run, first ones first."""
    return [each for each in judge(run, rules).findings if each.severity != "note" and each.state == "fired"]


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


def _outcome(replay: Run, change: str, about: Change, symptoms: Symptoms) -> Outcome:
    """Read off a replay what went wrong in it."""
    about_loss = {each.id for each in symptoms.rules if _is_about_loss(each)}
    findings = [each for each in judge(replay, [*symptoms.rules, symptoms.alert]).findings if each.severity != "note"]
    fired = [each for each in findings if each.rule != symptoms.alert.id]
    growth = growth_of(np.asarray(replay["input_norm"])) if "input_norm" in replay.names else 0.0
    bad: set[Part] = {"alert"} if len(fired) < len(findings) else set()
    if growth >= math.log(GROWN) or any(each.severity == "error" and each.rule not in about_loss for each in fired):
        bad.add("explosion")
    if any(each.rule in about_loss for each in fired):
        bad.add("loss")
    loss = replay["loss"]
    return Outcome(
        change,
        about,
        frozenset(bad),
        tuple(dict.fromkeys(each.rule for each in fired)),
        float(loss[-10:].mean()),
        jump_of(loss, np.asarray(replay["step"]), symptoms.loss_step),
        growth,
    )


def _loss_step(replay: Run, symptoms: Symptoms) -> int:
    """Return the step at which the loss began to be bad in the unchanged replay; the alert's, where it did not."""
    about_loss = [each for each in symptoms.rules if _is_about_loss(each) and each.severity != "note"]
    return min((each.since for each in judge(replay, about_loss).findings), default=symptoms.loss_step)


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
        "input_growth": math.exp(outcome.growth),
    }
