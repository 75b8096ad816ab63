"""How well the predicted loss gap of rounded weights agrees with the measured one, over trained models and depths.

    python benchmarks/rounding.py                # 24 models, about six minutes on one core
    python benchmarks/rounding.py --models 4 --json

Trains small models of four architectures at three learning rates with two seeds each, rounds their weights to int8,
int6, int4 and bf16, and compares `loopscope.loops.rounding` at 1 to 32 loops. The rank correlation is over all models
and depths of a format; pairs in which a state left the range of float32 are left out and counted. The error a format
leaves in the state is compared in the same way.

Not covered: large models, quantisation schemes that are fitted to data.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from datetime import UTC, datetime
from typing import Any

import torch
from loopscope.loops.rounding import FORMATS, RoundedDepth, rounding
from loopscope.models import LoopedTransformer, build, standard_library
from loopscope.models.train import TrainConfig, train
from scipy.stats import spearmanr

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "concatenation, pre": {"injection": "concatenation"},
    "concatenation, sandwich": {"injection": "concatenation", "norm": "sandwich"},
    "addition": {"injection": "addition"},
    "parcae": {"injection": "parcae"},
}
RATES = (0.003, 0.01, 0.03)
SEEDS = (0, 1)
DEPTHS = (1, 2, 4, 8, 16, 32)


def trained(fields: dict[str, Any], lr: float, seed: int, steps: int) -> tuple[LoopedTransformer, Any]:
    """Return a model trained on the standard library's bytes, and its data."""
    torch.manual_seed(seed)
    model = build("demo", **fields)
    data = standard_library(sequence_length=32, seed=seed)
    train(model, data, TrainConfig(steps=steps, lr=lr, seed=seed))
    return model, data


def compare(rows: list[RoundedDepth]) -> dict[str, Any]:
    """Return how the predicted numbers of a format agree with the measured ones."""
    usable = [row for row in rows if math.isfinite(row.measured) and math.isfinite(row.predicted)]
    gap = spearmanr([row.predicted for row in usable], [row.measured for row in usable]).statistic
    error = spearmanr([row.predicted_error for row in usable], [row.measured_error for row in usable]).statistic
    misses = sorted(abs(row.predicted - row.measured) for row in usable)
    return {
        "pairs": len(usable),
        "left_out": len(rows) - len(usable),
        "spearman_gap": float(gap),
        "spearman_state_error": float(error),
        "median_miss": misses[len(misses) // 2],
        "largest_miss": misses[-1],
        "largest_gap": max(abs(row.measured) for row in usable),
    }


def main() -> None:
    """Train, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=24, help="how many of the 24 models")
    parser.add_argument("--steps", type=int, default=120, help="training steps of each")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    kinds = list(itertools.product(SEEDS, RATES, ARCHITECTURES))[: options.models]
    rows: dict[str, list[RoundedDepth]] = {name: [] for name in FORMATS}
    for seed, lr, name in kinds:
        model, data = trained(ARCHITECTURES[name], lr, seed, options.steps)
        tokens = next(data.held_out(8))
        costs = rounding(model, tokens[:, :-1], tokens[:, 1:], formats=list(FORMATS), depths=DEPTHS)
        for row in costs.rows:
            rows[row.format].append(row)
        if not options.json:
            safe = ", ".join(f"{each} {costs.safe_depth(each)}" for each in FORMATS)
            print(f"{name:<24} lr {lr:<6} seed {seed}: safe depth {safe}", flush=True)
    table = {name: compare(each) for name, each in rows.items()}
    every = compare([row for each in rows.values() for row in each])
    if options.json:
        print(
            json.dumps({"date": f"{datetime.now(UTC):%Y-%m-%d}", "models": len(kinds), "formats": table, "all": every})
        )
        return
    print(f"\n{datetime.now(UTC):%Y-%m-%d}, {len(kinds)} models x {len(DEPTHS)} depths")
    columns = ("Spearman gap", "state error", "median miss", "largest gap")
    print(f"{'format':<8}{'pairs':>6}{'left out':>10}" + "".join(f"{column:>14}" for column in columns))
    for name, row in {**table, "all": every}.items():
        print(
            f"{name:<8}{row['pairs']:>6}{row['left_out']:>10}{row['spearman_gap']:>14.3f}"
            f"{row['spearman_state_error']:>14.3f}{row['median_miss']:>14.1e}{row['largest_gap']:>14.1e}"
        )


if __name__ == "__main__":
    main()
