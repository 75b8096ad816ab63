"""What a run file says of its whole run: no secrets, no more readers than its owner's group, nothing slow to import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import loopscope
import pytest
from loopscope.gate.check import check_runs
from loopscope.models import build
from loopscope.probes.run_info import HIDDEN, without_secrets


@pytest.mark.parametrize(
    ("command", "secret"),
    [
        (["--hf-token", "s3cret"], "s3cret"),
        (["--token=s3cret"], "s3cret"),
        (["--wandb-api-key", "s3cret"], "s3cret"),
        (["optimizer.password=s3cret"], "s3cret"),
        (["AWS_SECRET_ACCESS_KEY=s3cret"], "s3cret"),
        (["--data", "https://user:s3cret@host/corpus"], "s3cret"),
        (["s3://bucket/x?X-Amz-Signature=s3cret&part=1"], "s3cret"),
        (["--note", "hf_AbCdEfGhIjKlMnOpQrSt"], "hf_AbCdEfGhIjKlMnOpQrSt"),
        (["--x", "ghp_0123456789abcdefghijABCDEFGHIJ012345"], "ghp_0123456789"),
    ],
)
def test_what_looks_like_a_secret_is_hidden(command: list[str], secret: str) -> None:
    shown = " ".join(without_secrets(["train.py", *command, "--lr", "0.1"]))
    assert secret not in shown and HIDDEN in shown and shown.endswith("--lr 0.1")


@pytest.mark.parametrize("word", ["--tokens=4096", "--tokenizer", "gpt2", "--keyboard", "monkey=3", "model.n_tokens=7"])
def test_ordinary_words_are_shown(word: str) -> None:
    assert without_secrets(["train.py", word, "5"]) == ["train.py", word, "5"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o640), (0o077, 0o600), (0o000, 0o640)])
def test_a_run_file_is_for_its_owner_and_the_group(umask: int, mode: int, demo_model: Any, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        probe = loopscope.attach(demo_model(), tmp_path / "a.h5")
        probe.step(loss=1.0)
        live = (tmp_path / "a.h5").stat().st_mode & 0o777
        probe.close()
    finally:
        os.umask(before)
    assert (live, (tmp_path / "a.h5").stat().st_mode & 0o777) == (mode, mode)


def test_a_file_that_was_opened_to_others_stays_so(demo_model: Any, tmp_path: Path) -> None:
    probe = loopscope.attach(demo_model(), tmp_path / "a.h5")
    (tmp_path / "a.h5").chmod(0o644)
    probe.step(loss=1.0)
    probe.close()  # sealing puts another file in its place
    assert (tmp_path / "a.h5").stat().st_mode & 0o777 == 0o644


def test_attaching_imports_no_compiler(tmp_path: Path) -> None:
    """It takes more than a second, and who does not compile has no use for it."""
    code = (
        "import sys, torch, loopscope; from loopscope.models import build\n"
        "probe = loopscope.attach(build('demo'), sys.argv[1]); probe.close()\n"
        "print([name for name in ('torch._dynamo', 'torch._inductor') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.h5")], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_run_says_which_commit_it_was_trained_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_text(f"{commit}\n")
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    with loopscope.attach(build("demo"), "a.h5") as probe:
        probe.step(loss=1.0)
    with loopscope.open_run("a.h5") as run:
        assert run.info["commit"] == commit
    assert check_runs([Path("a.h5")]).runs[0].commit == commit
