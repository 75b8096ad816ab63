"""TRM's own code trained for 300 steps: what loopscope says of each variable, beside hundreds of passes by hand.

    python examples/studies/trm_verdicts.py runs/trm --checkout TinyRecursiveModels

The preset `inspect` says of z_H and z_L what they do, from 64 passes over two sequences. By hand the same weights run
200 passes over the same two, in float64, and where these leave it open 2,000. Compared is every variable at every
measurement.

By hand, a variable
- grows where it is not finite, or both its norm and its steps have doubled in the second half of the passes;
- settles where its steps are below 1e-9 of its norm, or those of the last tenth are below a fifth of those half way;
- else, where the two are within a factor of two, orbits if it stays in bounds, and drifts if it does not: whether the
  last quarter of the passes leads more than a quarter farther from the state half way than the quarter before;
- else it is open.
Steps and norms are means over tokens, as they are recorded.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import loopscope
import numpy as np
import torch
from loopscope.rules.variable_verdicts import laws_of_passes
from study import pieces, table
from torch import Tensor
from trm_checkout import KINDS, ByHand, batches, build, missing, optimizer_of

STEPS, PASSES, MORE = 300, 200, 2000
SEQUENCES = 2  # of the fixed batch that the full loop is measured on
RATES, SEEDS = (0.0003, 0.001, 0.002, 0.005, 0.007, 0.02, 0.1), (0, 1, 2)
SAME = {"settling": "settles", "orbiting": "orbits", "drifting": "drifts", "exploding": "grows"}


def by_hand(states: Tensor) -> str:
    """Return what a variable does, from its states ``(T + 1, B, S, D)``, by the rule above.

    >>> t = torch.arange(201.0, dtype=torch.float64)
    >>> rest, turn, away = 0.9**t, torch.stack([t.cos(), t.sin()], -1), torch.stack([t, 0 * t], -1)
    >>> [by_hand(own.reshape(201, 1, 1, -1)) for own in (1 + rest, turn, away, 1.1**t, torch.log(1 + t))]
    ['settles', 'orbits', 'drifts', 'grows', 'open']
    """
    passes = len(states) - 1
    half, tenth, quarter = passes // 2, passes // 10, passes // 4
    if not bool(torch.isfinite(states).all()):
        return "grows"
    steps, norms = states.diff(dim=0).norm(dim=-1).mean((1, 2)), states.norm(dim=-1).mean((1, 2))
    late, middle = float(steps[-tenth:].mean()), float(steps[half - tenth : half].mean())
    if bool((steps[-tenth:] < 1e-9 * norms[-tenth:]).all()) or late < 0.2 * middle:
        return "settles"
    if late > 2 * middle and norms[-1] > 2 * norms[half]:
        return "grows"
    if not 0.5 < late / middle < 2:
        return "open"
    away = (states[half:] - states[half]).norm(dim=-1).mean((1, 2))
    return "drifts" if away[-quarter:].max() > 1.25 * away[:-quarter].max() else "orbits"


def trained(path: str, checkout: str, kind: str, lr: float, seed: int, largest: int) -> dict[str, Any]:
    """Train once under a probe, and keep the first batch and the weights of every measurement beside the run."""
    head, kept = build(Path(checkout), seed, kind=kind), dict[int, Any]()
    optimizer, stream = optimizer_of(head, lr), batches(seed, largest=largest)
    first = batch = next(stream)
    carry = head.initial_carry(batch)  # type: ignore[operator]
    config = {"train": {"lr": lr}, "seed": seed}
    with loopscope.attach(
        head, path, preset="inspect", overwrite=True, config=config, scalars=["exact", "halt_steps"]
    ) as probe:
        for step in range(STEPS):
            carry, loss, metrics, _, _ = head(carry=carry, batch=batch, return_keys=[])
            loss = loss / len(batch["inputs"])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if step == 0 or step % 50 == 49:
                kept[step] = {name: value.clone() for name, value in head.state_dict().items()}
            halted = int(metrics["count"])
            shares = {"exact": metrics["exact_accuracy"], "halt_steps": metrics["steps"]} if halted else {}
            probe.step(loss=loss, lr=lr, **{name: float(value) / halted for name, value in shares.items()})
            batch = next(stream)
    torch.save({"batch": first, "weights": kept}, Path(path).with_suffix(".pt"))
    return judged(path, checkout, kind, lr, seed)


def judged(path: str, checkout: str, kind: str, lr: float, seed: int) -> dict[str, Any]:
    """Return what was recorded, what it was judged to be, and what the loop by hand does, of every measurement."""
    run, kept = loopscope.open_run(path), torch.load(Path(path).with_suffix(".pt"))
    batch = {name: value[:SEQUENCES] for name, value in kept["batch"].items()}
    head = build(Path(checkout), seed, kind=kind)
    steps, arrays = run.arrays("variable_passes")
    rows = []
    for step, passes in zip(steps.tolist(), arrays, strict=True):
        head.load_state_dict(kept["weights"][step])
        states = ByHand.of(head, batch, torch.float64).states(PASSES)
        more: dict[str, Tensor] = {}
        recorded = ByHand.of(head, batch, torch.float32).states(passes.shape[1])
        for number, (name, law) in enumerate(laws_of_passes(run, passes).items()):
            own = passes[number].astype(np.float64)
            truth = by_hand(states[name])
            if truth == "open" or law.kind == "undecided":
                more = more or ByHand.of(head, batch, torch.float64).states(MORE)
            norms = recorded[name][1:].norm(dim=-1).mean((1, 2)).double().numpy()
            late = states[name].diff(dim=0).norm(dim=-1).mean((1, 2))[-20:] / states[name].norm(dim=-1).mean()
            rows.append({
                "step": step, "variable": name, "kind": law.kind, "between": law.between, "method": law.method,
                "more_loops": law.more_loops, "by_hand": truth, "later": by_hand(more[name]) if more else "",
                "last_steps": float(late.mean()),
                "apart": float(np.abs(own[:, 0] / norms - 1).max()),
            })  # fmt: skip
    diagnosis = loopscope.diagnose(run)
    findings = [f"{one.rule} {one.step}" + (f" {one.variable}" if one.variable else "") for one in diagnosis.findings]
    loss = [float(run["loss"][0]), float(run["loss"][-1])]
    exact = float(np.nanmean(run["exact"][-20:]))
    said = [one.said for one in diagnosis.by_variable]
    return {"lr": lr, "seed": seed, "loss": loss, "exact": exact, "rows": rows, "said": said, "findings": findings}


def agrees(row: dict[str, Any]) -> bool | None:
    """Return whether a verdict is that of the loop by hand; None where one of the two is open."""
    truth = row["later"] if row["by_hand"] == "open" else row["by_hand"]
    return None if row["kind"] not in SAME or truth in ("", "open") else SAME[row["kind"]] == truth


def tables(results: list[dict[str, Any]]) -> str:
    """Return the table of docs/models.md by rate, what is not true of it, and what the page of each run says."""
    head = [
        "rate",
        "loss, last step",
        "solved",
        "`z_L` · `z_H`, last measurement",
        "by hand",
        "all: true",
        "undecided",
        "false",
    ]
    lines, notes, said, apart = [], [], [], 0.0
    for lr in sorted({result["lr"] for result in results}):
        own = [result for result in results if result["lr"] == lr]
        all_rows = [row for result in own for row in result["rows"]]
        last = [_pair(result, lambda row: SAME.get(row["kind"], row["kind"])) for result in own]
        hand = [
            _pair(result, lambda row: row["later"] if row["by_hand"] == "open" else row["by_hand"]) for result in own
        ]
        counts = [sum(agrees(row) is so for row in all_rows) for so in (True, None, False)]
        losses = ", ".join(f"{result['loss'][1]:.2f}" for result in own)
        solved = ", ".join(f"{100 * result['exact']:.0f} %" for result in own)
        lines.append([f"{lr:g}", losses, solved, ", ".join(last), ", ".join(hand), *counts])
        apart = max(apart, *(row["apart"] for row in all_rows))
        for result in own:
            said.append(
                f"- {lr:g}, seed {result['seed']}: {'; '.join(result['said'])}; {', '.join(result['findings'])}"
            )
            notes += [
                f"- {lr:g}, seed {result['seed']}, step {row['step']}: {row['variable']} {row['kind']} "
                f"{' or '.join(row['between'])}, by hand {row['by_hand']} {row['later']}; steps of "
                f"{100 * row['last_steps']:.2g} %, {row['more_loops']} more passes said to tell"
                for row in result["rows"] if not agrees(row)
            ]  # fmt: skip
    end = f"The norms of all recorded passes and of those by hand in float32 are apart by at most {apart:.1e}."
    return "\n\n".join([table(head, lines), "\n".join(notes), end, "\n".join(said)])


def _pair(result: dict[str, Any], of: Callable[[dict[str, Any]], str]) -> str:
    """Return what all variables do at the last measurement, z_L first."""
    last = {row["variable"]: of(row) for row in result["rows"] if row["step"] == result["rows"][-1]["step"]}
    return " · ".join(last[name] for name in sorted(last, reverse=True))


def main() -> int:
    """Train what is missing, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/trm"))
    parser.add_argument("--checkout", type=Path, help="of TRM's repository")
    parser.add_argument("--jobs", type=int, default=0, help="runs trained at the same time; 0: one per processor")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--kind", choices=KINDS, default="trm")
    parser.add_argument("--largest", type=int, default=3, help="sort numbers from 1 to this one")
    options = parser.parse_args()
    if why := missing(options.checkout):
        print(why)
        return 0
    names = {f"lr{lr:g}-seed{seed}": (lr, seed, options.largest) for lr in options.rates for seed in SEEDS}
    where = str(options.checkout.resolve())
    items = {name: (str(options.folder / f"{name}.h5"), where, options.kind, *of) for name, of in names.items()}
    print(tables(list(pieces(options.folder, trained, items, options.jobs, "runs trained").values())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
