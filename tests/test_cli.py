"""The command as a user meets it: exit codes, one-line errors, help, and the gate's JSON."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from .warm import run as run_cli

CLI = [sys.executable, "-m", "loopscope.cli"]


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The error of a command: exactly one line on stderr, no traceback."""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert lines[0].startswith("loopscope: ")
    return lines[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One short run of each injection at the demo's learning rate."""
    folder = tmp_path_factory.mktemp("runs")
    for injection in ("addition", "concatenation", "parcae"):
        settings = ["--injection", injection, "--norm", "pre", "--lr", 0.05, "--steps", 80, "--seed", 0]
        done = run_cli("train", "--preset", "demo", *settings, "--device", "cpu", "--out", folder / f"{injection}.h5")
        assert done.returncode == 0, done.stderr
        assert "80 steps, loss" in done.stdout
    return folder


def test_help_is_quick_and_never_loads_torch():
    code = "import sys, loopscope.cli as c\ntry: c.main(['-h'])\nexcept SystemExit: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False")
    began = time.perf_counter()
    assert subprocess.run([*CLI, "--help"], capture_output=True).returncode == 0
    assert time.perf_counter() - began < 2  # 0.1 s where it was written; the bound only catches a heavy import


def test_train_can_inspect_the_full_loop(tmp_path):
    out = tmp_path / "a.h5"
    done = run_cli("train", "--preset", "demo", "--steps", 2, "--device", "cpu", "--measure", "inspect", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "Full loop stable" in done.stdout  # Parcae at its start
    shown = json.loads(run_cli("check", out, "--format", "json").stdout)
    assert shown["runs"][0]["regimes"]["loop"] == "stable"
    assert run_cli("train", "--measure", "everything", "--out", tmp_path / "b.h5").returncode == 2


@pytest.mark.parametrize(
    "command",
    [
        "demo",
        "train",
        "dash",
        "check",
        "describe",
        "linearize",
        "depth",
        "tokenize",
        "export",
        "repair",
        "doctor",
        "smoke",
        "lint",
    ],
)
def test_every_command_has_help_with_an_example(command):
    done = run_cli(command, "--help")
    assert done.returncode == 0
    assert f"loopscope {command}" in " ".join(done.stdout.split("Example:")[1].split())


def test_the_gate_passes_parcae_and_addition_and_fails_concatenation(trained):
    done = run_cli("check", trained / "parcae.h5")
    assert (done.returncode, done.stdout[:4]) == (0, "PASS")
    done = run_cli("check", trained / "addition.h5")
    assert done.returncode == 0
    assert "marginal by design" in done.stdout
    done = run_cli("check", trained / "concatenation.h5")
    assert done.returncode == 1
    for word in ("FAIL", "LS020", "step", "ρ(A̅) =", "above 1", "try:"):
        assert word in done.stdout


def test_the_gates_json(trained):
    done = run_cli("check", *sorted(trained.glob("*.h5")), "--format", "json")
    assert done.returncode == 1
    result = json.loads(done.stdout)
    assert (result["version"], result["verdict"]) == (2, "fail")
    verdicts = {Path(run["path"]).stem: run["regimes"] for run in result["runs"]}
    assert verdicts["concatenation"] == {"lti": "unstable", "loop": "unknown", "trajectory": "unstable"}
    assert verdicts["addition"] == {"lti": "marginal", "loop": "unknown", "trajectory": "marginal"}
    assert verdicts["parcae"] == {"lti": "stable", "loop": "unknown", "trajectory": "stable"}
    finding = result["runs"][1]["findings"][0]
    assert {"rule", "severity", "step", "value", "threshold", "message", "remedy"} <= finding.keys()
    assert finding["value"] > finding["threshold"] == 1.0


def test_fail_on_moves_the_bar(trained):
    assert run_cli("check", trained / "addition.h5", "--fail-on", "note").returncode == 1
    assert run_cli("check", trained / "concatenation.h5", "--fail-on", "error").returncode == 1


def test_unreadable_files_are_four(trained, tmp_path):
    whole = (trained / "parcae.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[: len(whole) // 3])
    (tmp_path / "foreign.h5").write_text("not a run")
    (tmp_path / "empty.h5").write_bytes(b"")
    for name in ("cut.h5", "foreign.h5", "empty.h5", "missing.h5"):
        done = run_cli("check", tmp_path / name)
        assert done.returncode == 4, name
        assert name in done.stdout
        assert done.stderr == ""
        assert len(done.stdout.strip().splitlines()) == 1
    done = run_cli("check", tmp_path / "cut.h5", trained / "parcae.h5", "--format", "json")
    assert (done.returncode, json.loads(done.stdout)["verdict"]) == (4, "error")


def test_a_run_without_rows_is_five(tmp_path):
    from loopscope.runfile.writer import RunWriter

    with RunWriter.create(tmp_path / "none.h5", info={}):
        pass
    done = run_cli("check", tmp_path / "none.h5")
    assert done.returncode == 5
    assert "no step was recorded" in done.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["check", "--frobnicate"], "--frobnicate"),
        (["check"], "RUN"),
        (["frobnicate"], "frobnicate"),
        (["check", "a.h5", "--fail-on", "sometimes"], "sometimes"),
        (["check", "a.h5", "--rules", "nowhere.toml"], "nowhere.toml"),
        (["train", "--out", "a.h5", "--device", "cuda:99"], "cuda"),
        (["train", "--out", "a.h5", "--preset", "huge"], "huge"),
        (["export", "nowhere.h5", "-o", "a.xls"], ""),
    ],
)
def test_usage_errors_are_two_and_one_line(words, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run_cli(*words)
    assert done.returncode == (4 if words[0] == "export" else 2), done.stderr
    assert says in one_line(done)


def test_describe_finds_the_loop_of_a_users_model(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "class Looped(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.embed, self.head = torch.nn.Embedding(9, 4), torch.nn.Linear(4, 9)\n"
        "        self.block = torch.nn.Linear(4, 4)\n"
        "    def forward(self, tokens, n_loops=3):\n"
        "        h = self.embed(tokens)\n"
        "        for _ in range(n_loops):\n"
        "            h = self.block(h)\n"
        "        return self.head(h)\n"
        "def plain(): return torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Linear(4, 9))\n"
    )
    monkeypatch.chdir(tmp_path)
    done = run_cli("describe", "mine:Looped")
    assert done.returncode == 0, done.stderr
    assert "block" in done.stdout
    assert "3 loops" in done.stdout
    assert run_cli("describe", "mine:plain").returncode == 1
    for wrong in ("mine", "mine:nothing", "nowhere:build", ":"):
        done = run_cli("describe", wrong)
        assert done.returncode == 2, done.stdout
        assert "expected MODULE:FACTORY" in one_line(done)


def test_train_does_not_overwrite_unasked(trained):
    done = run_cli("train", "--steps", "1", "--out", trained / "parcae.h5")
    assert done.returncode == 2
    assert "--resume" in one_line(done)


def test_a_resume_that_is_refused_leaves_the_run_finished(tmp_path):
    from loopscope.probes import open_run

    out = tmp_path / "a.h5"
    assert run_cli("train", "--steps", "12", "--out", out).returncode == 0
    done = run_cli("train", "--steps", "24", "--lr", "0.5", "--out", out, "--resume")
    assert done.returncode == 2
    assert "lr was" in one_line(done)
    with open_run(out) as run:
        assert run.state == "finished" and len(run) == 12


def test_a_rule_of_ones_own_speaks_while_training_runs_and_at_its_end(tmp_path):
    from loopscope.probes import open_run

    rules = tmp_path / "rules.toml"
    rules.write_text('[[rule]]\nid = "MINE"\nexpr = "depth > 0"\nfor = 3\nmessage = "{value} loops"\n')
    done = run_cli("train", "--steps", "30", "--out", tmp_path / "a.h5", "--rules", rules)
    assert done.returncode == 0, done.stderr
    assert "MINE mine [error] step 3:" in done.stdout
    assert "step 3: MINE mine:" in done.stderr.replace("\n", " ")
    with open_run(tmp_path / "a.h5") as run:
        assert [(event.step, event.severity) for event in run.events if event.kind == "MINE"] == [(3, "error")]
    done = run_cli("train", "--steps", "30", "--out", tmp_path / "b.h5", "--rules", tmp_path / "none.toml")
    assert done.returncode == 2
    assert "none.toml" in one_line(done)
    assert not (tmp_path / "b.h5").exists()


def test_export_and_repair(trained, tmp_path):
    done = run_cli("export", trained / "parcae.h5", "-o", tmp_path / "a.csv")
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 81
    done = run_cli("export", trained / "parcae.h5", "-o", tmp_path / "a.csv")
    assert (done.returncode, "--force" in one_line(done)) == (2, True)
    done = run_cli("repair", trained / "parcae.h5")
    assert done.returncode == 0
    assert run_cli("check", trained / "parcae.h5").returncode == 0


def test_the_files_of_ranks_are_one_run(tmp_path):
    from loopscope.runfile.writer import RunWriter

    for rank, name in enumerate(("a.h5", "a.rank1.h5")):
        with RunWriter.create(tmp_path / name, info={"rank": rank, "world_size": 3}) as writer:
            for step in range(3):
                writer.append_step({"step": step, "loss": 2.0 + rank})
    done = run_cli("check", *sorted(tmp_path.glob("*.h5")), "--format", "json", "--fail-on", "warning")
    (run,) = json.loads(done.stdout)["runs"]
    assert (done.returncode, Path(run["path"]).name) == (1, "a.h5")
    finding, *_ = run["findings"]
    assert (finding["rule"], finding["name"], finding["severity"]) == ("LS002", "rank-missing", "warning")
    assert finding["message"] in run["summary"] and "rank 2 of 3 left no file" in finding["message"].lower()
    alone = json.loads(run_cli("check", tmp_path / "a.rank1.h5", "--format", "json").stdout)["runs"][0]
    assert {finding["rule"] for finding in alone["findings"]} == {"LS003", "LS004"}
    assert {"too-few-steps", "no-loops"} <= {finding["name"] for finding in alone["findings"]}
    for name, losses in (("a", {"2.5"}), ("a.rank1", {"3.0"})):
        out = tmp_path / f"{name}.csv"
        assert run_cli("export", tmp_path / f"{name}.h5", "-o", out).returncode == 0
        header, *lines = out.read_text().splitlines()
        assert {line.split(",")[header.split(",").index("loss")] for line in lines} == losses


def test_resuming_makes_the_run_longer(tmp_path):
    out = tmp_path / "a.h5"
    whole = tmp_path / "b.h5"
    for steps, path, more in ((20, out, []), (40, out, ["--resume"]), (40, whole, [])):
        done = run_cli("train", "--steps", steps, "--lr", "0.01", "--device", "cpu", "--out", path, *more)
        assert done.returncode == 0, done.stderr
    from loopscope import open_run

    with open_run(out) as resumed, open_run(whole) as uninterrupted:
        assert resumed["step"].tolist() == list(range(40))
        np.testing.assert_array_equal(resumed["loss"], uninterrupted["loss"])
        np.testing.assert_array_equal(resumed["a_bar_radius"], uninterrupted["a_bar_radius"])


def test_an_error_of_ours_is_three_and_asks_for_the_traceback(monkeypatch, capsys, tmp_path):
    from loopscope import cli
    from loopscope.gate import check as gate

    def broken(*args, **options):
        raise RuntimeError("a defect")

    monkeypatch.setattr(gate, "load_rules", broken)
    with pytest.raises(SystemExit) as left:
        cli.main(["check", str(tmp_path / "a.h5")])
    assert left.value.code == 3
    said = capsys.readouterr().err
    assert said == "loopscope: internal error: RuntimeError: a defect (run again with --debug for the traceback)\n"
    with pytest.raises(SystemExit) as left:
        cli.main(["--debug", "check", str(tmp_path / "a.h5")])
    assert left.value.code == 3 and "Traceback" in capsys.readouterr().err
