"""The body of ``loopscope watch``: runs followed in the terminal, from another process or node than the training's."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Final

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from ..gate.notify import Notifier, services
from ..gate.watch import Look, Watch, alerts
from ..rules.rule_files import load_rules
from ..runfile.layout import Severity
from ..runfile.text import plain
from .output import REGIME_STYLES
from .rules import rule_file

NEWEST: Final = 8  # alerts shown
QUIET: Final = 60.0  # seconds without a row after which the line says so


def watch(
    paths: list[Path],
    *,
    rules: Path | None = None,
    fail_on: Severity = "error",
    interval: float = 2.0,
    until_finished: bool = False,
) -> int:
    """Follow runs until Ctrl-C, or until all have ended; return the exit code that ``check`` gives.

    Args:
        paths: Run files and folders of them.
        rules: TOML file that changes or adds rules.
        fail_on: Least severity that fails a run.
        interval: Seconds between two looks at a run, at least.
        until_finished: End when no run is live any more.
    """
    send = services(os.environ)
    notifier = None if send is None else Notifier(send)
    judged_by = load_rules(rule_file(rules))
    silent = {rule.id for rule in judged_by if "notify" not in rule.actions}
    follower = Watch(paths, judged_by, fail_on=fail_on, interval=interval)
    console = Console()
    newest: list[str] = []
    try:
        with Live(console=console, auto_refresh=False, transient=False) if console.is_terminal else _Plain() as page:
            while True:
                for path, look in follower.look():
                    newest += [_line(path, look, number) for number in range(len(look.news))]
                    if notifier is not None:
                        notifier.update(str(path), [each for each in alerts(path, look) if each.rule not in silent])
                    if not console.is_terminal:
                        _print_plainly(path, look)
                if isinstance(page, Live):
                    page.update(Group(_table(follower), *(escape(line) for line in newest[-NEWEST:])), refresh=True)
                if until_finished and follower.is_over:
                    break
                time.sleep(min(interval, 0.5))
    except KeyboardInterrupt:
        pass
    finally:
        follower.close()
        if notifier is not None:
            notifier.close()
    return follower.result.exit_code


class _Plain:
    """Stands where the terminal page would, for output that is piped."""

    def __enter__(self) -> _Plain:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def _print_plainly(path: Path, look: Look) -> None:
    """Print a line for a run that changed, and one for each new finding."""
    said = look.check.diagnosis
    regime = said.verdict if said is not None else "unknown"
    why = "" if said is not None else f"  {plain(look.check.error)}"
    print(f"{plain(path)}  {look.state}  {look.steps} steps  {regime}{why}")  # noqa: T201 - the output of the command
    for number in range(len(look.news)):
        print(f"  {_line(path, look, number)}")  # noqa: T201
    sys.stdout.flush()


def _line(path: Path, look: Look, number: int) -> str:
    """Return a new finding as one line."""
    each = look.news[number]
    pending = f" (pending, {each.held} of {each.hold} steps)" if each.state == "pending" else ""
    return plain(f"{each.severity} {path} step {each.step}: {each.rule} {each.name}{pending}: {each.message}")


def _table(follower: Watch) -> Table:
    """Return one line a run."""
    shown = Table(box=None, expand=True)
    for name in ("run", "state", "steps", "verdict", "ρ(A̅)", "loss", "latest"):
        shown.add_column(name, justify="right" if name in ("steps", "ρ(A̅)") else "left", no_wrap=name != "latest")
    for path, look in follower.looks.items():
        said = look.check.diagnosis
        if said is None:
            shown.add_row(escape(plain(path)), look.state, "", "", "", "", escape(plain(look.check.error)))
            continue
        state = look.state if look.state != "live" or look.quiet < QUIET else f"live, no row for {look.quiet:.0f} s"
        radius = "" if said.radius != said.radius else f"{said.radius:.3f}"
        last = max(
            (each for each in said.findings if each.severity != "note" and each.name != "run-live"),
            key=lambda each: each.step,
            default=None,
        )
        shown.add_row(
            escape(plain(path)),
            state,
            str(look.steps),
            f"[{REGIME_STYLES[said.verdict]}]{said.verdict}[/]",
            radius,
            look.check.trends.get("loss", ""),
            escape(plain(f"{last.rule} {last.name}, step {last.step}")) if last else "",
        )
    return shown
