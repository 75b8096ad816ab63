"""How a run ended: finished, still live, or interrupted and why; and from which step on its loop was not recorded.

The writer records it as it happens, as events: ``run_interrupted`` when an exception, a signal or a failed disk ended
the recording, ``probe_lost`` when the probe failed and training went on without it, ``steps_missing`` when a resumed
training went on later than the file ends. A run whose process is gone without a word was killed.

Not covered: a machine that stopped while the clock of another one reads the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from .reader import Run

RUN_INTERRUPTED: Final = "run_interrupted"
PROBE_LOST: Final = "probe_lost"
STOPPED_LOST: Final = "interrupted by rule LS071"
"""How the reason of a run begins that was ended early because its risk said that it was lost."""
STEPS_MISSING: Final = "steps_missing"
KILLED: Final = (
    "its process is gone and left no word: it was killed (SIGTERM, SIGKILL, out of memory), left by os._exit, or its "
    "disk or machine stopped"
)

State = Literal["live", "interrupted", "finished"]


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended, as far as its file says.

    Attributes:
        state: ``live``, ``interrupted`` or ``finished``.
        reason: Why the run was interrupted, for a person; empty otherwise.
        last_step: The last recorded step; None without rows.
        lost_from: The step from which on the loop was not recorded because the probe failed; None when it did not.
        lost_reason: Why the probe failed; empty when it did not.
    """

    state: State
    reason: str
    last_step: int | None
    lost_from: int | None
    lost_reason: str


def ending(run: Run) -> Ending:
    """Say how a run ended.

    Args:
        run: An opened run, live or not.

    Returns:
        The ending of its last generation: what interrupted a run that was resumed since is not its end.
    """
    events = run.events
    last = int(run["step"][-1]) if len(run) else None
    state = run.state
    last_process = [event for event in events if event.generation == run.generation]
    said = [event.message for event in last_process if event.kind == RUN_INTERRUPTED]
    reason = (said[-1] if said else KILLED) if state == "interrupted" else ""
    lost = next((event for event in last_process if event.kind == PROBE_LOST), None)
    if lost is None:
        return Ending(state, reason, last, None, "")
    return Ending(state, reason, last, lost.step, lost.message)
