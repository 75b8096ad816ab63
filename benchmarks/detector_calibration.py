"""What the detectors among the shipped rules are worth: on recorded runs, on planted faults, on long quiet runs.

Reads the runs that ``rules_calibration.py`` has trained (even seeds for choosing, odd seeds for reporting), and prints

1. hits on runs that went bad and alarms on runs whose loss stayed healthy, for each rule;
2. for rules of the loss, how many of the healthy odd runs are caught after their loss was multiplied from step 100 on,
   and after how many steps;
3. false alarms on a long loss with nothing but noise around its level.

    python benchmarks/detector_calibration.py runs/calibration
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from loopscope import open_run
from loopscope.rules.expression import Evaluator
from loopscope.rules.judging import Firing, judge, turning_rows
from loopscope.rules.loss_series import SOURCES, LossSeries
from loopscope.rules.rule_files import Rule, load_rules
from rules_calibration import is_bad, unigram_entropy

DETECTORS = ("LS015", "LS016", "LS017", "LS018", "LS019", "LS031", "LS032", "LS033", "LS034", "LS050", "LS051")
OF_THE_LOSS = ("LS010", "LS011", "LS017", "LS018")
FROM, FACTORS = 100, (1.05, 1.1, 1.2, 1.35)
LONG = 100_000


def fired_at(rule: Rule, columns: dict[str, np.ndarray]) -> list[int]:
    """Return the steps at which a rule of the loss fires on columns as a run file has them."""
    series = LossSeries().replay(columns)
    steps = np.arange(float(len(columns["loss"])))
    holds = Evaluator(rule.expr).update(steps, {name: series[name] for name in rule.expr.names}).truth.yes
    firing = Firing(rule)
    return [row for row in turning_rows(holds, steps, rule.hold) if firing.update(steps[row], holds[row])]


def on_runs(paths: list[Path], rules: list[Rule], entropy: float) -> None:
    """Print hits and alarms."""
    table: dict[tuple[int, str, bool], list[set[str]]] = {}
    judged: dict[str, int] = {}
    for path in paths:
        kind, norm, _, seed = path.stem.rsplit("-", 3)
        with open_run(path) as run:
            said = judge(run, rules)
            fired = {each.rule for each in said.findings if each.state == "fired"}
            for each in said.judgements:
                judged[each.rule] = judged.get(each.rule, 0) + (each.state == "judged")
            table.setdefault((int(seed) % 2, f"{kind}, {norm}", is_bad(run["loss"], entropy)), []).append(fired)
    for parity, name in ((0, "even seeds (chosen on)"), (1, "odd seeds (reported)")):
        print(f"\n{name}: hits/bad +alarms/healthy")
        for kind in sorted({key[1] for key in table}):
            bad, good = table.get((parity, kind, True), []), table.get((parity, kind, False), [])
            cells = [f"{r.id} {sum(r.id in f for f in bad)}/{len(bad)} +{sum(r.id in f for f in good)}/{len(good)}"
                     for r in rules]  # fmt: skip
            print(f"  {kind:24}" + "   ".join(cells))
    print("\nruns on which each could be judged:", ", ".join(f"{rule} {count}" for rule, count in judged.items()))


def on_planted_faults(paths: list[Path], rules: list[Rule], entropy: float) -> None:
    """Print how many raised losses are seen, and after how many steps."""
    healthy = []
    for path in paths:
        with open_run(path) as run:
            if int(path.stem.rsplit("-", 1)[1]) % 2 and not is_bad(run["loss"], entropy):
                healthy.append({name: np.array(run[name]) for name in SOURCES})
    print(f"\n{len(healthy)} healthy odd runs, their losses multiplied from step {FROM} on: caught, steps (median)")
    for factor in (1.0, *FACTORS):
        cells = []
        for rule in rules:
            delays = []
            for columns in healthy:
                raised = np.where(np.arange(len(columns["loss"])) >= FROM, factor, 1.0) * columns["loss"]
                after = [step for step in fired_at(rule, {**columns, "loss": raised}) if step >= FROM]
                delays += [after[0] - FROM] if after else []
            cells.append(f"{rule.id} {len(delays):2d}" + (f", {np.median(delays):3.0f}" if delays else "     "))
        print(f"  x{factor:<5}" + "   ".join(cells))


def on_quiet_losses(rules: list[Rule]) -> None:
    """Print false alarms on a level with noise, for two kinds of noise."""
    print(f"\nepisodes in {LONG} steps of a level with 3 % noise")
    for name in ("normal", "heavy tails (t, 5 degrees)"):
        draw = np.random.default_rng(0)
        noise = draw.standard_normal(LONG) if name == "normal" else draw.standard_t(5, LONG)
        columns = {"loss": 2.5 * (1 + 0.03 * noise), "depth": np.full(LONG, 8.0),
                   **{each: np.zeros(LONG) for each in ("lr", "grad_norm", "nonfinite")}}  # fmt: skip
        print(f"  {name:28}" + "   ".join(f"{rule.id} {len(fired_at(rule, columns))}" for rule in rules))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    paths = sorted(parser.parse_args().runs.glob("*.h5"))
    shipped = {rule.id: rule for rule in load_rules()}
    entropy = unigram_entropy()
    on_runs(paths, [shipped[each] for each in DETECTORS], entropy)
    of_the_loss = [shipped[each] for each in OF_THE_LOSS]
    on_planted_faults(paths, of_the_loss, entropy)
    on_quiet_losses(of_the_loss)


if __name__ == "__main__":
    main()
