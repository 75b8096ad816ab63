"""Make the recorded runs that ship with the package, for `loopscope dash --example`: a few minutes on one core.

Small looped models trained on Python's own source. They tell the paper's story: concatenation at four learning rates,
of which two are too hot, and at the hottest one Parcae, addition and sandwich norm for comparison.

    python examples/make_example_runs.py dashboard/recorded
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

from loopscope.commands.training import train_run
from loopscope.models.run_config import RunConfig

STEPS = 200
RUNS = {
    "concatenation-lr0.05": ("concatenation", "pre", 0.05, 0, "study"),
    "concatenation-lr0.03": ("concatenation", "pre", 0.03, 1, "inspect"),
    "concatenation-lr0.01": ("concatenation", "pre", 0.01, 0, "inspect"),
    "concatenation-lr0.003": ("concatenation", "pre", 0.003, 0, "watch"),
    "concatenation-sandwich-lr0.05": ("concatenation", "sandwich", 0.05, 0, "inspect"),
    "addition-lr0.05": ("addition", "pre", 0.05, 0, "inspect"),
    "parcae-lr0.05": ("parcae", "pre", 0.05, 0, "study"),
}


def make(name: str, folder: Path) -> None:
    """Train one run in a folder of its own, so that no path and no name of this machine is recorded."""
    injection, norm, lr, seed, measure = RUNS[name]
    words = f"--preset demo --injection {injection} --norm {norm} --lr {lr} --steps {STEPS} --seed {seed}"
    words += f" --device cpu --measure {measure} --out {name}.h5"
    config = RunConfig().updated(
        preset="demo",
        seed=seed,
        model={"injection": injection, "norm": norm},
        train={"lr": lr, "steps": STEPS, "checkpoint_every": STEPS},
    )
    with tempfile.TemporaryDirectory() as scratch, patch("platform.node", return_value="example"):
        home, before = Path.cwd(), sys.argv
        os.chdir(scratch)
        sys.argv = ["loopscope", "train", *words.split()]
        try:
            train_run(Path(f"{name}.h5"), config, device="cpu", measure=measure)
            made = Path(f"{name}.h5").absolute()
        finally:
            os.chdir(home)
            sys.argv = before
        shutil.move(made, folder / f"{name}.h5")  # as the writer left it: an edited file is read the slow way


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    for one in sys.argv[2:] or RUNS:
        make(one, target.absolute())
        print(target / f"{one}.h5", f"{(target / f'{one}.h5').stat().st_size / 1e3:.0f} kB")
