"""The ``lint`` command: what is known to go wrong with a loop like this, before any training.

Not covered: a model on the meta device, which has no numbers to look at.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import nn

from ..gate.result import FAILED, NOTHING, PASSED
from ..loops.analysis import linearize
from ..loops.before_training import Plan, Remark, Severity, remarks
from ..loops.find import find_site
from ..loops.site import LoopSiteError, unwrap
from ..loops.trace import example_tokens
from ..models.run_config import RunConfig, load_run_config
from ..runfile.text import plain
from .output import complain, say

_SEVERITIES: Final[tuple[Severity, ...]] = ("note", "warning", "error")
_BUDGET: Final = 20.0  # seconds for the full loop
_VERSION: Final = 1


def lint(
    target: str, *, lr: float | None, loops: int | None, fail_on: Severity, output: Literal["text", "json"]
) -> int:
    """Print what is known of a loop before its training, and return the exit code.

    Args:
        target: A TOML file as ``loopscope train --config`` takes it, or ``MODULE:FACTORY`` of a model.
        lr: Peak learning rate; of a configuration, its own where None.
        loops: Loops at test time.
        fail_on: Least severity that fails.
        output: What is printed.

    Returns:
        0; 1 where a check at or above ``fail_on`` warned; 5 where no loop was found, or no check could look.

    Raises:
        ValueError: The configuration is not valid, or there is no such factory.
    """
    model, run = _built(target)
    plan: Plan | None = None
    problem, said = "", []
    try:
        plan = _plan(model, run, lr, loops)
        said = remarks(plan)
    except LoopSiteError as error:
        problem = str(error)
    code = _exit_code(said, fail_on)
    if output == "json":
        whole: dict[str, Any] = {"version": _VERSION, "target": target, "exit_code": code, "fail_on": fail_on,
                                 "problem": problem, "remarks": [asdict(remark) for remark in said]}  # fmt: skip
        say(json.dumps(whole, indent=2, ensure_ascii=False))
    else:
        say("\n".join(_lines(target, said, code)))
    if problem:
        complain(f"{target}: {problem}")
    return code


def _exit_code(said: list[Remark], fail_on: Severity) -> int:
    """Return what the remarks come to."""
    limit = _SEVERITIES.index(fail_on)
    if any(each.state == "warned" and _SEVERITIES.index(each.severity) >= limit for each in said):
        return FAILED
    return PASSED if any(each.state != "not judged" for each in said) else NOTHING


def _lines(target: str, said: list[Remark], code: int) -> Iterator[str]:
    """Yield the remarks for people: warnings with source and remedy, the others in a line."""
    word = {PASSED: "PASS", FAILED: "FAIL"}.get(code, "ERROR")
    yield f"{word}  {plain(target)}, before any training"
    for each in sorted(said, key=lambda remark: (remark.state != "warned", remark.state == "not judged")):
        state = f"[{each.severity}]" if each.state == "warned" else each.state
        yield plain(f"      {each.id} {each.name} {state}: {each.message}")
        if each.state == "warned":
            yield plain(f"            known from: {each.source}")
            yield plain(f"            try: {each.remedy}")


def _built(target: str) -> tuple[nn.Module, RunConfig | None]:
    """Return the model of a configuration or of a factory.

    Raises:
        ValueError: It cannot be built.
    """
    if Path(target).suffix == ".toml" or Path(target).is_file():
        run = load_run_config(Path(target))
        torch.manual_seed(run.seed)
        return run.build_model(), run
    module, _, name = target.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        factory = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{target}: {error}; expected a TOML file, or MODULE:FACTORY as my_project.models:build"
        ) from None
    try:
        model = factory()
    except Exception as error:  # it is the user's
        raise ValueError(f"{target}: failed: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"{target}: gave a {type(model).__name__}, expected a torch.nn.Module")
    return model, None


def _plan(model: nn.Module, run: RunConfig | None, lr: float | None, loops: int | None) -> Plan:
    """Return what is known of a training.

    Raises:
        LoopSiteError: The loop cannot be located.
    """
    inner = unwrap(model)
    tokens = example_tokens(inner)
    site = find_site(inner, None, tokens)
    rate = lr if lr is not None or run is None else run.train_config().lr
    norm = None if run is None else run.looped.prelude_norm
    depth = 2 * (site.mean_depth or 8)
    try:
        seen = linearize(inner, tokens, num_loops=depth, site=site, budget=_BUDGET)
    except (LoopSiteError, ValueError, RuntimeError):
        seen = None  # the check that wants it says so
    return Plan(inner, site, rate, loops, norm, seen)
