"""The user's own training under a probe, no line of it changed; whatever goes wrong with it never gives 0."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from loopscope.commands.smoke import smoke
from loopscope.gate.check import check_runs
from loopscope.probes import import_hook
from loopscope.runfile.open import open_run

SCRIPT = Path(__file__).parents[1] / "foreign" / "plain_script.py"


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """Run a command under smoke; returns exit code, what was printed, and the run file."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in sys.path if p))

    def start(*words, steps=30, **options):
        given = {"rules": None, "fail_on": "error", "output": "text", "timeout": None} | options
        out = tmp_path / "runs" / "smoke.h5"
        code = smoke([sys.executable, *map(str, words)], steps=steps, out=out, **given)
        said = capfd.readouterr()
        return code, said.out, said.err, out

    return start


def script(tmp_path, text):
    """A training of the plain script's model with something else around it."""
    path = tmp_path / "mine.py"
    head = f"import sys\nsys.path.insert(0, {str(SCRIPT.parent)!r})\n"
    path.write_text(head + "import torch\nfrom torch.nn import functional as F\nfrom plain_script import Net\n" + text)
    return path


TRAIN = """
torch.manual_seed(0)
model = Net()
opt = torch.optim.SGD(model.parameters(), lr=0.01)
x = torch.randint(0, 64, (4, 9))
def step(scale=1.0):
    loss = F.cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())
    opt.zero_grad()
    (loss * scale).backward()
    opt.step()
    return float(loss)
"""


def test_a_script_is_recorded_as_it_trains_stopped_after_its_steps_and_checked(run):
    code, out, err, path = run(SCRIPT, "--steps", 10**6, steps=40)
    assert code == 0 and out.startswith("PASS") and "(40 steps)" in out and "done" not in out and not err
    with open_run(path) as recorded:
        assert recorded.state == "finished" and len(recorded) == 40 and (recorded["depth"] == 6).all()
        assert np.isfinite(recorded["loss"]).all() and np.allclose(recorded["lr"], 1e-3)
        assert np.isfinite(recorded["grad_norm"]).all() and recorded["loss"][-1] < recorded["loss"][0]


def test_the_training_is_the_same_as_without(run, tmp_path):
    mine = script(tmp_path, TRAIN + "print([step() for _ in range(25)])\n")
    alone = subprocess.run([sys.executable, mine], capture_output=True, text=True, check=True).stdout
    code, out, err, path = run(mine, steps=100)
    assert code == 0 and out.splitlines()[0] == alone.strip()
    assert "ended by itself after 25 of 100 steps" in err
    with open_run(path) as recorded:
        np.testing.assert_allclose(recorded["loss"], json.loads(alone), rtol=1e-6)


def test_a_loss_that_a_scaler_enlarged_and_one_of_several_parts_are_what_they_were(run, tmp_path):
    text = TRAIN + (
        "scaler = torch.amp.GradScaler('cpu', init_scale=1024.0)\n"
        "for _ in range(30):\n"
        "    opt.zero_grad()\n"
        "    for part in (0, 1):\n"
        "        loss = F.cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten()) / 2\n"
        "        scaler.scale(loss).backward()\n"
        "    scaler.step(opt)\n"
        "    scaler.update()\n"
    )
    code, _, _, path = run(script(tmp_path, text), steps=25)
    assert code == 0
    with open_run(path) as recorded:
        assert 3.5 < recorded["loss"][0] < 5.5  # of 64 tokens; ln 64 is 4.16


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("for _ in range(25): step()\nsys.exit(3)\n", "failed with exit code 3 after 25 of 30 steps"),
        ("for _ in range(25): step()\nraise RuntimeError('mine')\n", "failed with exit code 1 after 25 of 30 steps"),
        ("model.eval()\nfor _ in range(25): step()\n", "no model was called in training mode"),
        ("", "no model was called in training mode"),
    ],
)
def test_a_command_that_fails_or_trains_nothing_never_gives_0(text, said, run, tmp_path):
    code, _, err, _ = run(script(tmp_path, TRAIN + text))
    assert code == 5 and said in err


def test_a_model_without_a_loop_is_named_with_the_reason(run, tmp_path):
    text = (
        "import torch\nmodel = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))\n"
        "opt = torch.optim.SGD(model.parameters(), lr=0.1)\n"
        "for _ in range(25):\n    loss = model(torch.ones(2, 4)).mean()\n    loss.backward()\n    opt.step()\n"
    )
    (tmp_path / "flat.py").write_text(text)
    code, _, err, _ = run(tmp_path / "flat.py")
    assert code == 5 and "no loop was found in Sequential" in err and "LOOPSCOPE_MODEL" in err


def test_no_torch_no_python_and_no_command_are_said(run, tmp_path):
    code, _, err, out = run("-c", "print('nothing')")
    assert code == 5 and "never imported torch" in err
    options = {"rules": None, "fail_on": "error", "output": "text", "timeout": None}
    assert smoke(["true"], steps=1, out=out, **options) == 5
    with pytest.raises(ValueError, match="cannot be started"):
        smoke(["no-such-command-at-all"], steps=1, out=out, **options)
    with pytest.raises(ValueError, match="-o: not an option of smoke"):
        smoke(["-o", "a.h5", "--", "true"], steps=1, out=out, **options)
    with pytest.raises(ValueError, match="name the command"):
        smoke([], steps=1, out=out, **options)


def test_an_unstable_training_fails_whatever_it_does_afterwards(run, tmp_path):
    text = TRAIN + "for n in range(60):\n    step(float('nan') if n == 25 else 1.0)\n"
    code, out, _, path = run(script(tmp_path, text), steps=50)
    assert code == 1 and "LS001" in out and check_runs([path]).exit_code == 1


def test_a_training_that_swallows_its_end_and_one_that_hangs_are_ended(run, tmp_path):
    text = TRAIN + "while True:\n    try:\n        step()\n    except BaseException:\n        pass\n"
    code, out, _, _ = run(script(tmp_path, text), steps=25, timeout=120)
    assert code == 0 and "(25 steps)" in out
    code, _, err, _ = run(script(tmp_path, TRAIN + "step()\nimport time\ntime.sleep(600)\n"), timeout=20)
    assert code == 5 and "it took too long: 0 of 30 steps" in err


def test_the_model_can_be_named_and_another_file_is_never_replaced(run, tmp_path, monkeypatch):
    monkeypatch.setenv("LOOPSCOPE_MODEL", "__main__:student")
    text = TRAIN + "student = Net(d=16)\nopt = torch.optim.SGD([*model.parameters(), *student.parameters()], lr=0.01)\n"
    text += (
        "for _ in range(25):\n    loss = (model(x) - student(x)).square().mean()\n    loss.backward()\n    opt.step()\n"
    )
    code, _, _, path = run(script(tmp_path, text), steps=22)
    with open_run(path) as recorded:
        assert code == 0 and recorded.info["parameters"] < 20_000
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="is no run file"):
        run(SCRIPT)
    assert path.read_text() == "mine"


def test_a_sitecustomize_that_was_there_runs_as_before(run, tmp_path, monkeypatch):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("import builtins\nbuiltins.mine = 7\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), os.environ["PYTHONPATH"]]))
    _, out, _, _ = run("-c", "import sitecustomize; print(mine, sitecustomize.__file__)")
    assert out.startswith("7 ") and str(tmp_path / "site") in out


def test_without_an_order_nothing_is_armed(monkeypatch):
    monkeypatch.delenv(import_hook.ORDER, raising=False)
    before = list(sys.meta_path)
    import_hook.arm()
    assert sys.meta_path == before
