"""How many loops the forwards in evaluation mode run, between one row and the next.

The tap counts the calls of the loop as they come, on the host: nothing is computed, copied or waited for, and an
evaluation runs as it would without a probe.

Not covered: how deep each sequence of a batch runs, which only its states tell: a forward counts the loops of its
longest one. Copies of the model (that of an EMA): they take no hooks along.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class Evaluations:
    """Adds up the forwards in evaluation mode since the last row.

    >>> evaluations = Evaluations()
    >>> evaluations.add([4])
    >>> evaluations.add([16])
    >>> evaluations.take()
    {'eval_forwards': 2.0, 'eval_depth': 10.0, 'eval_depth_max': 16.0}
    >>> evaluations.take()
    {}
    """

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._forwards = self._runs = self._loops = self._most = 0

    def add(self, runs: Sequence[int]) -> None:
        """Add a forward.

        Args:
            runs: Loops of each time it ran the loop. A run of none (a loop that is switched off) says nothing
                about depth.
        """
        depths = [loops for loops in runs if loops]
        self._forwards += 1
        self._runs += len(depths)
        self._loops += sum(depths)
        self._most = max(self._most, *depths, 0)

    def take(self) -> dict[str, float]:
        """Return the numbers of the next row by their names, and begin anew; empty without a forward."""
        if not self._forwards:
            return {}
        numbers = {"eval_forwards": float(self._forwards)}
        if self._runs:
            numbers |= {"eval_depth": self._loops / self._runs, "eval_depth_max": float(self._most)}
        self._forget()
        return numbers


def said_of_evaluation(numbers: Mapping[str, float]) -> str:
    """Return what was evaluated after the last row, for the event that says so.

    >>> said_of_evaluation({"eval_forwards": 3.0, "eval_depth": 10.0, "eval_depth_max": 16.0})
    'after the last row the model was evaluated: 3 forwards of 10 loops on average, 16 at most'
    """
    forwards = f"{numbers['eval_forwards']:g} forward{'s' if numbers['eval_forwards'] != 1 else ''}"
    mean, most = numbers["eval_depth"], numbers["eval_depth_max"]
    loops = f"{most:g} loops" if mean == most else f"{mean:.3g} loops on average, {most:g} at most"
    return f"after the last row the model was evaluated: {forwards} of {loops}"
