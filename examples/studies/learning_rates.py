"""The paper's Table 2 at CPU size: which learning rates does each architecture stand?

    python examples/studies/learning_rates.py runs/learning-rates      # trains what is missing, then prints the table

A run is *lost*, by a rule that was written down before the runs:

    its state on the fixed batch after 16 loops, twice the training depth, is above 1e4 or not a number, or
    its mean loss over the last ten steps is above 3.15 nats, the entropy of single bytes in this text, or not a number.

The first half sees what norms hide from the loss, the second a model that has learned nothing but frequencies.
"""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import loopscope
import numpy as np

LARGEST_STATE = 1e4
UNIGRAM = 3.15  # nats
GRID = Path(__file__).with_suffix(".toml")


def lost(run: loopscope.Run) -> str:
    """Return why a run is lost, ``state`` or ``loss``; empty for a run that is not."""
    state, loss = run.probe("state_norm")[-1], float(np.mean(run["loss"][-10:]))
    last = state[np.isfinite(state)][-1] if np.isfinite(state).any() else np.inf
    if not (np.isfinite(state).all() and last <= LARGEST_STATE):
        return "state"
    return "" if loss <= UNIGRAM else "loss"


def table(folder: Path) -> str:
    """Return the counts of runs that were not lost, by architecture and learning rate."""
    counts: dict[tuple[str, float], list[str]] = defaultdict(list)
    for path in sorted(folder.glob("*.h5")):
        with loopscope.open_run(path) as run:
            config = run.info["config"]
            name = f"{config['model']['injection']}, {config['model']['norm']}"
            counts[name, config["train"]["lr"]].append(lost(run))
    rates = sorted({rate for _, rate in counts})
    lines = ["| architecture | " + " | ".join(f"lr {rate:g}" for rate in rates) + " |", "|---" * (len(rates) + 1) + "|"]
    for name in dict.fromkeys(name for name, _ in counts):
        cells = []
        for rate in rates:
            ends = counts[name, rate]
            why = ", ".join(f"{ends.count(each)} {each}" for each in ("state", "loss") if each in ends)
            cells.append(f"{ends.count('')} of {len(ends)}" + (f" ({why})" if why else ""))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Train the sweep where it is not done, and print the table."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/learning-rates")
    subprocess.run([sys.executable, "-m", "loopscope", "sweep", str(GRID), "-o", str(folder)], check=True)
    print(table(folder))


if __name__ == "__main__":
    main()
