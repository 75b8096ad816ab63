"""The rules that are judged while a run is recorded.

Not covered: judging them (`alerts`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from ..rules.rule_files import Rule, find_rule_file, load_rules, refuse_unknown_series
from ..rules.series import KNOWN_NAMES, names_of
from ..runfile.open import open_run

log = logging.getLogger("loopscope")


def rules_for(resumed: Path | None, rules: Path | None, scalars: Sequence[str]) -> list[Rule]:
    """Return the rules that are judged while training runs; a name that no row can have is refused now.

    Args:
        resumed: The run file that is continued, where there is one: its own numbers are known too.
        rules: The rule file.
        scalars: The numbers that the user declares.
    """
    loaded = load_rules(rules)
    known = {*KNOWN_NAMES, *scalars}
    strange = [rule for rule in loaded if not rule.expr.names <= known]
    if strange and resumed is not None and resumed.exists():
        with open_run(resumed) as run:
            known |= set(names_of(run))
    refuse_unknown_series(
        strange, known, "this run will not have", "declare numbers of your own: attach(scalars=[...])"
    )
    return loaded


def project_rules() -> Path | None:
    """Return the rule file of the project that is trained in."""
    project = find_rule_file(Path.cwd())
    if project is not None:
        log.info("loopscope: rules of %s", project)
    return project
