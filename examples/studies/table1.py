"""The paper's Table 1 from recorded runs: what A̅ is for each injection, and which regime its linear part is in.

    python examples/studies/table1.py runs/evidence      # reads the 80 runs of learning_rates.toml

The regime is the one that loopscope says of a whole run (``diagnose``).
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from loopscope.rules.diagnosis import diagnose
from study import ARCHITECTURES, Result, alone, chosen, learning_rate_runs, share, table


def study(folder: Path, jobs: int = 0) -> Result:
    """Train what is missing in the folder, and return the tables, figures and numbers of this study."""
    runs = learning_rate_runs(folder, jobs)
    result = Result()
    rows = []
    for name in ARCHITECTURES:
        of_kind = chosen(runs, name)
        radii = [each.run["a_bar_radius"] for each in of_kind]
        said = Counter(diagnose(each.run).regimes["lti"] for each in of_kind)
        above = share(sum(bool(np.nanmax(radius) > 1.0) for radius in radii), len(radii))
        result.numbers[f"{name}: runs with ρ(A̅) above 1"] = above
        first, last = np.array([radius[0] for radius in radii]), np.array([radius[-1] for radius in radii])
        regimes = ", ".join(f"{count} {regime}" for regime, count in said.most_common())
        start = f"{first.min():.2f} to {first.max():.2f}"
        rows.append([name, start, f"{last.min():.2f} to {last.max():.2f}", above.text(), regimes])
    head = ["architecture", "ρ(A̅), first step", "ρ(A̅), last step", "share of runs above 1", "linear part, by run"]
    result.tables["table1"] = table(head, rows)
    return result


if __name__ == "__main__":
    alone(study, __doc__)
