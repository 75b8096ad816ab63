"""A small looped model trained for a minute in CI, with a probe attached.

python train.py --injection concatenation --lr 0.05 --steps 120 --out runs/ci.h5
"""

import argparse
from pathlib import Path

import loopscope
import torch
from loopscope.models import build, standard_library
from torch.nn.functional import cross_entropy


def main() -> None:
    """Train and record."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--injection", default="parcae", choices=("addition", "concatenation", "parcae"))
    options.add_argument("--lr", type=float, default=0.01)
    options.add_argument("--steps", type=int, default=120)
    options.add_argument("--out", type=Path, default=Path("runs/ci.h5"))
    given = options.parse_args()

    torch.manual_seed(0)
    model = build("demo", injection=given.injection)
    text = standard_library(sequence_length=32, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=given.lr, betas=(0.9, 0.95))
    with loopscope.attach(model, given.out, overwrite=True) as probe:
        for step in range(given.steps):
            batch = text.batch(step, 8)
            loss = cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = given.lr * min(1.0, (step + 1) / 10)
            optimizer.step()
            probe.step(loss=loss, grad_norm=norm, lr=given.lr)


if __name__ == "__main__":
    main()
