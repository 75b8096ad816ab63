"""Do `diagnose`, `check` and `linearize` come to the same verdict on the same model?

Trains small models over four architectures, learning rates and seeds, with the preset `inspect` and a checkpoint at the
end, and prints one row a model. Where the verdicts differ, the row says what each of them saw.

    nice -n 19 python benchmarks/verdicts.py --out runs/verdicts
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from pathlib import Path

KINDS = (("concatenation", "pre"), ("concatenation", "sandwich"), ("addition", "pre"), ("parcae", "pre"))
RATES = (0.003, 0.01, 0.03, 0.05, 0.08)
STEPS = 80


def train(path: Path, injection: str, norm: str, lr: float, seed: int) -> None:
    """Train one model and keep its run and its last checkpoint; one that is there already is kept."""
    from loopscope.commands.training import train_run
    from loopscope.models.run_config import RunConfig

    if not path.exists():
        recipe = {"lr": lr, "steps": STEPS, "checkpoint_every": STEPS}
        config = RunConfig(preset="demo", seed=seed, model={"injection": injection, "norm": norm}, train=recipe)
        train_run(path, config, device="cpu", overwrite=True, measure="inspect")


def main() -> None:
    """Print the table."""
    import torch
    from loopscope import diagnose, open_run
    from loopscope.commands.checkpoints import linearize_checkpoint
    from loopscope.gate.check import check_runs
    from loopscope.gate.json_report import as_json

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first-seed", type=int, default=40)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("loopscope").setLevel(logging.ERROR)
    folder = options.out or Path(tempfile.mkdtemp())
    print("| model | lr | diagnose | check | linearize | what differs |\n|---|---|---|---|---|---|")
    cells = [(*kind, lr, options.first_seed + i) for i, lr in enumerate(RATES) for kind in KINDS]
    same = 0
    for injection, norm, lr, seed in cells:
        path = folder / f"{injection}-{norm}-{lr:g}-{seed}.h5"
        train(path, injection, norm, lr, seed)
        with open_run(path) as run:
            seen = diagnose(run)
        checked = json.loads(as_json(check_runs([path])))["runs"][0]["verdict"]
        found = linearize_checkpoint(
            path.with_suffix(".checkpoint"), num_loops=16, text=None, shape=(4, 32), budget=60.0, device="cpu"
        )
        agree = seen.verdict == checked == found.regime
        same += agree
        why = "" if agree else f"{differences(seen.regimes, found.regimes)}: {seen.summary} Against: {found.verdict}"
        print(
            f"| {injection}, {norm} | {lr:g} | {seen.verdict} | {checked} | {found.regime} | {why.replace('|', ';')} |",
            flush=True,
        )
    print(f"\n{same} of {len(cells)} agree")


def differences(one: dict[str, str], other: dict[str, str]) -> str:
    """Say which views differ."""
    return ", ".join(f"{name} {one[name]} / {other[name]}" for name in one if one[name] != other[name]) or "none"


if __name__ == "__main__":
    main()
