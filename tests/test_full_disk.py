"""A disk that fills up at a random moment of training: training ends as it would have, the file says what is lost."""

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from loopscope import open_run

STEPS = 80

# Trains, with the run file on a small disk or with none; prints a digest of losses and parameters.
TRAINING = """
import contextlib, hashlib, logging, os, sys, time
import torch, torch.nn.functional as F
import loopscope
from loopscope.models import build

path, full_from, free_from, steps = sys.argv[1], *map(int, sys.argv[2:])
logging.basicConfig(format="%(message)s")
torch.manual_seed(0)
model = build("demo")
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
filler = os.path.join(os.path.dirname(path), "filler")

def fill():
    with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(65536))
    with open(filler, "ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"0")

watching = loopscope.attach(model, path) if path else contextlib.nullcontext()
digest = hashlib.sha256()
with watching as probe:
    for step in range(steps):
        if step == full_from:
            fill()
        if step == free_from:
            os.unlink(filler)
        tokens = torch.randint(0, 256, (2, 17))
        logits = model(tokens[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        digest.update(loss.detach().numpy().tobytes())
        if probe is not None:
            probe.step(loss=loss)
            time.sleep(0.02)  # so that the recorder flushes several times
for parameter in model.parameters():
    digest.update(parameter.detach().numpy().tobytes())
print(digest.hexdigest())
"""


def train(path: str, full_from: int = -1, free_from: int = -1) -> tuple[str, str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", TRAINING, path, *map(str, (full_from, free_from, STEPS))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


@pytest.fixture(scope="module")
def undisturbed() -> str:
    return train("")[0]


@pytest.mark.parametrize("seed", range(3))
def test_training_ends_as_it_would_have_and_the_rows_lost_are_said(
    seed: int, small_disk: Path, undisturbed: str
) -> None:
    full_from = random.Random(seed).randint(1, STEPS - 10)
    digest, said = train(str(small_disk / "run.h5"), full_from)
    assert digest == undisturbed
    assert said.count("the disk is nearly full; recording waits until there is room") == 1
    [lost] = re.findall(r"the disk stayed full, (\d+) steps were not recorded", said)
    with open_run(small_disk / "run.h5") as run:
        assert run.state == "interrupted"
        assert len(run) + int(lost) == STEPS
        # Rows are flushed twice a second; what was flushed before the disk was full is there.
        assert full_from - 40 <= len(run) <= full_from + 1
        assert run["step"].tolist() == list(range(len(run)))
        assert np.isfinite(run["loss"]).all()


def test_a_disk_that_is_freed_again_costs_nothing(small_disk: Path, undisturbed: str) -> None:
    digest, said = train(str(small_disk / "run.h5"), 20, 60)
    assert digest == undisturbed
    assert "not recorded" not in said
    with open_run(small_disk / "run.h5") as run:
        assert run.state == "finished"
        assert run["step"].tolist() == list(range(STEPS))
