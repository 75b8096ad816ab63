"""What LS019 and LS050 see in longer trainings than other calibrations have: losses that fall, and some that do not.

Trains small models for 1300 steps without a probe, and prints of each the highest value that LS019's ratio held for as
long as the rule asks, and the read-out's gain on real states, which LS050 reads. Even seeds are for choosing, odd ones
for reporting.

    python benchmarks/long_runs.py --seeds 4

Not covered: rules that read the loop in every step; the models are not watched.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from loopscope.loops.find import find_site
from loopscope.models import build, standard_library
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

CELLS = (("parcae", 0.01), ("parcae", 1e-6), ("concatenation", 0.03), ("parcae", 0.003))
STEPS, EVERY = 1300, 100  # steps of a training, and between two looks at the gain
MEAN, BACK, HELD = 200, 400, 100  # of LS019


def train(injection: str, lr: float, seed: int) -> tuple[np.ndarray, list[float]]:
    """Return the losses of a training, and the gain of the read-out every hundred steps."""
    torch.manual_seed(seed)
    model = build("demo", injection=injection, width=16)
    text = standard_library(sequence_length=32, seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95))
    site, last, losses, gains = find_site(model, None), list[Tensor](), list[float](), list[float]()
    assert site.c_out is not None
    model.get_submodule(site.after).register_forward_pre_hook(lambda module, given: last.append(given[0].detach()))
    for step in range(STEPS):
        last.clear()
        batch = text.batch(step, 8)
        loss = cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 10)
        optimizer.step()
        losses.append(float(loss))
        if step % EVERY == 0:
            with torch.no_grad():
                gains.append(float(((last[0] @ site.c_out().T).norm(dim=-1) / last[0].norm(dim=-1)).mean()))
    return np.array(losses), gains


def held_ratio(losses: np.ndarray) -> float:
    """Return the highest ratio of LS019 that was held for `HELD` steps."""
    means = np.convolve(losses, np.ones(MEAN) / MEAN, mode="valid")
    ratios = means[BACK:] / means[:-BACK]
    return float(np.lib.stride_tricks.sliding_window_view(ratios, HELD).min(axis=1).max())


def main() -> None:
    """Train and print a line for each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4)
    torch.set_num_threads(1)
    for seed in range(parser.parse_args().seeds):
        for injection, lr in CELLS:
            losses, gains = train(injection, lr, seed)
            name = f"{injection} {lr:g} seed {seed}"
            fell = f"loss {losses[:50].mean():.2f} to {losses[-50:].mean():.2f}, ratio held {held_ratio(losses):.4f}"
            print(f"{name}: {fell}; gain {gains[0]:.2f} to {gains[-1]:.2f}, lowest {min(gains):.2f}", flush=True)


if __name__ == "__main__":
    main()
