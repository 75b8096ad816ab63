"""The ``smoke`` command: the user's own training for some steps with a probe attached, then the gate.

No line of the training is changed: the probe comes in through the environment (`probes.import_hook`).

Not covered: commands that start their training on another machine, or in a Python without loopscope.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ..gate.check import check_runs
from ..gate.formats import Format
from ..gate.result import NOTHING
from ..probes.import_hook import MODEL, ORDER, site_folder
from ..runfile.layout import NotARun, RunFileError, Severity
from ..runfile.open import open_run
from ..runfile.rank_names import rank_files
from ..runfile.text import plain
from .check import show
from .output import complain
from .rules import rule_file

_NOT_STARTED: Final = 127


@dataclass(slots=True)
class Told:
    """What the processes of the command told.

    Attributes:
        armed: Python processes in which loopscope was loaded.
        torch: Those that imported torch.
        attached: The model that was attached to; empty without.
        refused: Why a model was not attached to, by its name.
        failures: What went wrong in loopscope itself.
        stopped: Whether the training was stopped after its steps.
        steps: Recorded steps.
    """

    armed: int = 0
    torch: int = 0
    attached: str = ""
    refused: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    stopped: bool = False
    steps: int = 0


def smoke(
    command: Sequence[str],
    *,
    steps: int,
    out: Path,
    rules: Path | None,
    fail_on: Severity,
    output: Format | None,
    timeout: float | None,
) -> int:
    """Run a training for some steps under a probe and return the exit code of ``check`` on what was recorded.

    Args:
        command: The command, as it would be run without loopscope.
        steps: Optimizer steps after which it is stopped.
        out: The run file; one of an earlier smoke training is replaced.
        rules: TOML file that changes or adds rules.
        fail_on: Least severity that fails.
        output: What is printed.
        timeout: Seconds after which the command is stopped; None: never.

    Returns:
        As ``check``; 5 where the command failed, trained no loop, or was too slow, unless a rule fired before.

    Raises:
        ValueError: There is no command, or it cannot be started.
        FileExistsError: Another file is where the recording should go.
    """
    if not command:
        raise ValueError("name the command after --, as in: loopscope smoke --steps 200 -- python train.py")
    if command[0].startswith("-"):
        raise ValueError(f"{plain(command[0])}: not an option of smoke (--help lists them); the command comes after --")
    _make_room(out)
    with tempfile.TemporaryDirectory(prefix="loopscope-smoke-") as folder:
        report = Path(folder) / "report.jsonl"
        code = _run(command, _environment(Path(folder), out, steps, report), timeout)
        told = _read(report)
    problems = _problems(command, code, told, steps)
    for problem in problems:
        complain(problem)
    if not told.attached:
        return NOTHING
    result = check_runs([out], rules_file=rule_file(rules), fail_on=fail_on)
    show(result, output)
    if not told.stopped and not problems:
        complain(f"the command ended by itself after {told.steps} of {steps} steps")
    return result.exit_code or (NOTHING if problems else 0)


def _make_room(out: Path) -> None:
    """Remove the recording of an earlier smoke training; nothing else is ever removed."""
    out.parent.mkdir(parents=True, exist_ok=True)
    for path in (out, *rank_files(out).values()):
        if not path.exists():
            continue
        try:
            with open_run(path):
                pass
        except NotARun:
            raise FileExistsError(f"{path}: is no run file; name another one with --out") from None
        except RunFileError:
            pass  # a damaged run of an earlier training
        path.unlink()


def _environment(folder: Path, out: Path, steps: int, report: Path) -> dict[str, str]:
    """Return the environment in which the command runs."""
    home = site_folder(folder / "site")
    paths = [str(home), *filter(None, [os.environ.get("PYTHONPATH", "")])]
    order = {"out": str(out.absolute()), "steps": steps, "report": str(report)}
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), ORDER: json.dumps(order)}


def _run(command: Sequence[str], environment: dict[str, str], timeout: float | None) -> int | None:
    """Run the command and return its exit code; None where it took too long and was stopped.

    Raises:
        ValueError: It cannot be started.
    """
    try:
        process = subprocess.Popen(list(command), env=environment)
    except OSError as error:
        raise ValueError(f"{plain(command[0])}: cannot be started: {error.strerror}") from None
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        return None
    except BaseException:
        process.terminate()
        process.wait(10)
        raise


def _read(report: Path) -> Told:
    """Return what the processes told."""
    told = Told()
    if not report.exists():
        return told
    for line in report.read_text(encoding="utf-8").splitlines():
        try:
            said: dict[str, Any] = json.loads(line)
        except ValueError:
            continue  # two processes wrote at once
        match said.get("what"):
            case "armed":
                told.armed += 1
            case "torch":
                told.torch += 1
            case "attached":
                told.attached = told.attached or said["model"]
            case "no loop" | "refused":
                told.refused[said["model"]] = said["error"]
            case "failed":
                told.failures.append(said["error"])
            case "stopped":
                told.stopped, told.steps = True, max(told.steps, said["steps"])
            case "closed":
                told.steps = max(told.steps, said["steps"])
    return told


def _problems(command: Sequence[str], code: int | None, told: Told, steps: int) -> list[str]:
    """Return why the command says less than it should, each in a line."""
    said = []
    if code is None:
        said.append(f"the command was stopped, it took too long: {told.steps} of {steps} steps were recorded")
    elif code:
        said.append(f"the command failed with exit code {code} after {told.steps} of {steps} steps")
    said += [f"loopscope could not be put in place: {error}" for error in told.failures]
    if told.attached:
        return said
    if not told.armed:
        said.append(f"{command[0]} started no Python in which loopscope is installed, so that no training was seen")
    elif not told.torch:
        said.append("the command never imported torch, so that no training was seen")
    elif told.refused:
        said += [f"no loop was found in {model}: {why}" for model, why in told.refused.items()]
        said.append(f"name the model with {MODEL}=module:object, where it is another one")
    else:
        said.append("no model was called in training mode, so that no training was seen")
    return said
