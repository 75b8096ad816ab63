"""The paper's Table 2 at CPU size: which learning rates does each architecture stand?

    python examples/studies/learning_rates.py runs/evidence      # trains what is missing, then prints the table

A run is *lost*, by a rule that was written down before the runs:

    its state on the fixed batch after 16 loops, twice the training depth, is above 1e4 or not a number, or
    its mean loss over the last ten steps is above 3.15 nats, the entropy of single bytes in this text, or not a number.

The first half sees what norms hide from the loss, the second a model that has learned nothing but frequencies.
"""

from __future__ import annotations

from pathlib import Path

from study import ARCHITECTURES, Result, alone, chosen, learning_rate_runs, rates, share, table


def study(folder: Path, jobs: int = 0) -> Result:
    """Train what is missing in the folder, and return the tables, figures and numbers of this study."""
    runs = learning_rate_runs(folder, jobs)
    result = Result()
    rows = []
    for name in ARCHITECTURES:
        cells = [name]
        for lr in rates(runs):
            ends = [each.lost() for each in chosen(runs, name, lr)]
            result.numbers[f"{name}, lr {lr:g}: not lost"] = share(ends.count(""), len(ends))
            why = ", ".join(f"{ends.count(each)} {each}" for each in ("state", "loss") if each in ends)
            cells.append(f"{ends.count('')} of {len(ends)}" + (f" ({why})" if why else ""))
        ends = [each.lost() for each in chosen(runs, name)]
        kept = result.numbers[f"{name}: not lost"] = share(ends.count(""), len(ends))
        rows.append([*cells, f"{ends.count('')} of {len(ends)}", kept.text()])
    head = ["architecture", *(f"lr {lr:g}" for lr in rates(runs)), "all", "share not lost"]
    result.tables["learning_rates"] = table(head, rows)
    return result


if __name__ == "__main__":
    alone(study, __doc__)
