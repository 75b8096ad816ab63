"""The ``explain`` command: the cause of an alert, by running its steps again with one thing changed at a time."""

from __future__ import annotations

import json
from pathlib import Path

from ..causes.experiment import BEFORE, GROWN, PARTS, Explanation, chosen_alert
from ..causes.experiment import explain as experiment
from ..causes.trained import TrainedRun
from ..rules.rule_files import load_rules
from ..runfile.open import open_run
from ..runfile.text import plain
from .output import complain, say
from .progress import part_progress
from .rules import rule_file
from .training import one_device


def explain(
    path: Path, *, at: int | None, after: int, out: Path | None, rules: Path | None, device: str, as_json: bool
) -> None:
    """Print which change removes an alert, the explosion and the loss, and the verdict.

    Args:
        path: A run of ``loopscope train``.
        at: Step of the alert; default: the first error, or the first warning.
        after: Steps that are run after it.
        out: Folder for the recordings of the replays; default: beside the run.
        rules: TOML file that changes or adds rules.
        device: Where to run.
        as_json: Print one JSON object.

    Raises:
        ValueError: Nothing to explain, or a run that cannot be run again.
    """
    folder = out or path.with_suffix(".explained")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: is a file; give --out a folder for the recordings of the replays")
    loaded = load_rules(rule_file(rules))
    with open_run(path) as run:
        alert = chosen_alert(run, loaded, at)
        again = TrainedRun(run, alert.step, device=str(one_device(device)))
        wanted = max(alert.step - BEFORE, 0)
        if wanted and not again.first_step(wanted):
            complain(
                f"no checkpoint of step {wanted} or before is left, so that everything is run again from step 0; "
                "keep_checkpoints = 0 in [train] keeps all of a run's checkpoints"
            )
        with part_progress() as report:
            result = experiment(run, again, folder, at=alert.step, after=after, rules=loaded, progress=report)
    say(json.dumps(result.as_dict(), indent=2) if as_json else as_text(result, folder))


def as_text(result: Explanation, folder: Path) -> str:
    """Return the table of what each change removes, and the verdict."""
    rows = [result.unchanged, *result.outcomes]
    wide = max(len(each.about.words) for each in rows)
    early = any(each.about.another_model for each in result.outcomes) and result.start > 0
    lines = [
        f"{result.rule} at step {result.step}; steps {result.start} to {result.stop - 1} run again, equal bit for bit"
        + ("; another architecture from step 0" if early else ""),
        "",
        f"{'changed':<{wide}}  {'alert':>9}  {'explosion':>9}  {'loss':>9}  {'last loss':>9}",
    ]
    for each in rows:
        cells = "  ".join(f"{_cell(part in each.bad, part in result.unchanged.bad):>9}" for part in PARTS)
        lines.append(f"{each.about.words:<{wide}}  {cells}  {each.last_loss:9.3f}")
    lines += [
        "",
        "there: as in the recorded run; gone: not any more; new: not in the recorded run; -: neither",
        f"explosion: an error about the loop, or an input of the loop that grows {GROWN}-fold; "
        "loss: a warning or an error about the loss, in nats",
        "",
        result.verdict,
    ]
    if result.other_alerts:
        told = ", ".join(str(each) for each in result.other_alerts)
        lines.append(f"other alerts of this run: {told}; --at STEP explains one of them")
    return "\n".join([*lines, f"replays: {plain(str(folder))}"])


def _cell(bad: bool, before: bool) -> str:
    """Return what became of one part: still there, gone, or new."""
    return ("there" if before else "new") if bad else ("gone" if before else "-")
