"""The runner over published models: what it compares, what it refuses to believe, what it skips."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

RUNNER = Path(__file__).resolve().parent.parent / "examples" / "published" / "runner.py"
ADAPTER = """
import sys
from pathlib import Path

import loopscope
import torch
from loopscope.models import build
from runner import Published, Training, returned, tokens


def make(checkout):
    model = build("demo")
    return Training(
        model,
        lambda model, number: torch.nn.functional.cross_entropy(
            model(tokens(number)[:, :-1]).flatten(0, 1), tokens(number)[:, 1:].flatten()
        ),
        call=tokens(0, batch=1, length=4),
        by_hand=lambda: {None: returned(model.core[-1])},
    )


MODELS = [
    Published("ours", "loopscope", "this one", make, folder=""),
    Published("theirs", "somebody/theirs", "abc1234", make),
]
"""
DISTURBING = """
attach = loopscope.attach


def disturbing(model, *words, **more):
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-2
    return attach(model, *words, **more)


loopscope.attach = disturbing
"""
FAILING = """
def failing(model, *words, **more):
    raise RuntimeError("no probe today")


loopscope.attach = failing
"""
TRIPLED = """
def tripled(module):
    states = []
    module.register_forward_hook(lambda _, __, out: states.append(3 * out.detach()))
    return states
"""
UNKNOWN = """
def make(checkout):
    import a_package_that_nobody_has


MODELS = [Published("unknown", "somebody/unknown", "abc1234", make, folder="")]
"""


def run(folder: Path, text: str, *words: str) -> tuple[int, str, list[dict]]:
    """Runs the runner over one file of adapters, and reads what it wrote."""
    (folder / "adapters").mkdir()
    (folder / "adapters" / "ours.py").write_text(text, encoding="utf-8")
    out = folder / "out.json"
    command = [sys.executable, str(RUNNER), str(folder), "--adapters", str(folder / "adapters"), "--out", str(out)]
    done = subprocess.run([*command, "--steps", "4", *words], capture_output=True, text=True, timeout=200)
    assert out.is_file(), done.stderr
    return done.returncode, done.stdout, json.loads(out.read_text(encoding="utf-8"))


def test_a_model_of_ours_is_the_same_with_a_probe_and_what_is_not_there_is_skipped(tmp_path: Path) -> None:
    code, said, (ours, theirs) = run(tmp_path, ADAPTER)
    assert code == 0, said
    assert ours["differing"] == {"watch": [], "inspect": []}
    assert not ours["failed"]
    assert ours["recorded"]["steps with loops"] == 4
    assert ours["linearized"].startswith("LTI stable")
    assert ours["by_hand"] < 1e-6
    assert set(ours["check"]) == {"watch", "inspect"}
    assert "theirs: no folder theirs: somebody/theirs at abc1234 is not checked out" in said
    assert theirs["skipped"]


@pytest.mark.parametrize(("text", "why"), [(DISTURBING, "losses"), (FAILING, "no probe today")])
def test_a_probe_that_changes_training_or_fails_in_it_is_reported(tmp_path: Path, text: str, why: str) -> None:
    code, said, _ = run(tmp_path, ADAPTER + text, "--only", "ours")
    assert code == 1
    assert "DIFFERS" in said
    assert why in said
    assert "not the same with a probe: ours" in said


def test_a_recorded_norm_that_is_not_the_one_by_hand_is_reported(tmp_path: Path) -> None:
    text = ADAPTER.replace("returned(model.core[-1])", "tripled(model.core[-1])")
    code, said, (ours,) = run(tmp_path, text + TRIPLED, "--only", "ours")
    assert ours["by_hand"] == pytest.approx(2 / 3)
    assert code == 1
    assert "DIFFERS (a recorded norm is 6.7e-01 from the one by hand)" in said


def test_what_cannot_be_imported_is_skipped_and_not_red(tmp_path: Path) -> None:
    code, said, _ = run(tmp_path, ADAPTER + UNKNOWN)
    assert code == 0
    assert "unknown: a package is not installed: No module named 'a_package_that_nobody_has'" in said


def test_a_model_that_fails_by_itself_is_no_difference_and_not_green(tmp_path: Path) -> None:
    text = ADAPTER.replace('model = build("demo")', 'raise TypeError("an adapter that is out of date")')
    code, said, (ours,) = run(tmp_path, text, "--only", "ours")
    assert code == 2
    assert "NOT COMPARED: ours: its own training fails, without a probe: TypeError: an adapter that is out" in said
    assert "not the same with a probe: none; not compared: ours" in said
    assert not ours["failed"]


def test_a_model_that_is_not_done_in_time_is_no_difference_and_not_green(tmp_path: Path) -> None:
    text = ADAPTER.replace('model = build("demo")', "import time; time.sleep(60)")
    code, said, _ = run(tmp_path, text, "--only", "ours", "--limit", "5")
    assert code == 2
    assert "NOT COMPARED: ours: not done after 5 seconds (--limit gives it more)" in said
    assert "DIFFERS" not in said
