"""What no output, no reader and no odd file may do to the exit code of the gate, as a user meets it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

CLI = [sys.executable, "-m", "loopscope"]


def wavy(steps):
    return 2 + 0.01 * np.sin(np.arange(steps))


def run_cli(*words, **options):
    done = subprocess.run([*CLI, *map(str, words)], capture_output=True, timeout=120, check=False, **options)
    return done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")


@pytest.fixture
def healthy(write_run):
    return write_run("healthy.h5", loss=wavy(60), a_bar_radius=0.8)


@pytest.fixture
def failing(write_run, loop_rows):
    passes = {step: loop_rows(1.3) for step in range(0, 60, 10)}
    return write_run("failing.h5", loss=wavy(60), a_bar_radius=1.3, probe=passes)


def test_debug_works_anywhere_and_changes_no_exit_code(healthy, tmp_path):
    missing = tmp_path / "missing.toml"
    for words in (["--debug", "check", healthy], ["check", "--debug", healthy], ["check", healthy, "--debug"]):
        assert run_cli(*words)[0] == 0
        code, _, said = run_cli(*words, "--rules", missing)
        assert code == 2 and "Traceback" in said and said.strip().splitlines()[-1].startswith("loopscope: ")
    assert "Traceback" not in run_cli("check", healthy, "--rules", missing)[2]


def test_version():
    code, out, err = run_cli("--version")
    assert (code, err) == (0, "") and out.strip()[0].isdigit()


@pytest.mark.parametrize(("name", "code"), [("healthy", 0), ("failing", 1)])
def test_a_reader_that_has_gone_does_not_change_the_verdict(name, code, request):
    path = request.getfixturevalue(name)
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*CLI, "check", path], stdout=write, stderr=subprocess.PIPE, check=False, timeout=120)
    os.close(write)
    assert (done.returncode, done.stderr) == (code, b"")


@pytest.mark.parametrize(("name", "code"), [("healthy", 0), ("failing", 1)])
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_the_output_does_not_change_the_verdict(name, code, request):
    path = request.getfixturevalue(name)
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*CLI, "check", path], stdout=full, stderr=subprocess.PIPE, check=False, timeout=120)
    assert done.returncode == code
    assert b"could not be written" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp437"])
def test_a_poor_encoding_does_not_change_the_verdict(failing, encoding):
    code, out, err = run_cli("check", failing, env={**os.environ, "PYTHONIOENCODING": encoding})
    assert (code, err) == (1, "") and "LS020" in out


def test_one_odd_file_costs_no_other_its_verdict(healthy, failing, tmp_path):
    scalar, table = tmp_path / "scalar.h5", tmp_path / "table.h5"
    with h5py.File(scalar, "w") as file:
        file["commit"] = "9f3c1ab"
    with h5py.File(table, "w") as file:
        file["commit"], file["steps"] = np.zeros(3), np.zeros((2, 2), "f4")
    code, out, _ = run_cli("check", healthy, scalar, table, failing, "--format", "json")
    runs = json.loads(out)["runs"]
    assert [run["outcome"] for run in runs] == ["pass", "error", "error", "fail"]
    assert code == 4 and [runs[0]["exit_code"], runs[3]["exit_code"]] == [0, 1]


def test_a_defect_of_ours_costs_one_run_its_verdict(healthy, failing, monkeypatch, capsys):
    from loopscope import cli
    from loopscope.gate import check as gate

    def diagnose(run, *args, **options):
        if run.path == healthy:
            raise IndexError("a defect")
        return gate_diagnose(run, *args, **options)

    gate_diagnose = gate.diagnose
    monkeypatch.setattr(gate, "diagnose", diagnose)
    for words, traceback in ((["check"], False), (["check", "--debug"], True)):
        with pytest.raises(SystemExit) as left:
            cli.main([*words, str(healthy), str(failing)])
        said = capsys.readouterr()
        assert left.value.code == 3
        assert "internal error: IndexError: a defect" in said.out and "LS020" in said.out
        assert ("Traceback" in said.err) == traceback


FORGED = "x\n::error file=train.py,line=1::forged\n::stop-commands::x\x1b]0;owned\x07\nPASS  everything"


@pytest.mark.parametrize("output", ["text", "json"])
def test_text_of_a_run_file_commands_neither_terminal_nor_log(tmp_path, output):
    from loopscope.runfile.layout import Event
    from loopscope.runfile.writer import RunWriter

    path = tmp_path / "a\n::error::from a name\x1b[31m.h5"
    with RunWriter.create(path, info={}) as writer:
        for step in range(30):
            writer.append_step({"step": step, "loss": 2.0 + step % 3, "depth": 4.0, "nonfinite": 0.0})
        for kind in ("rank_missing", "probe_lost", "run_interrupted", "fixed_batch"):
            writer.append_event(Event(29, 0.0, kind, "warning", message=FORGED))
    rules = tmp_path / "r.toml"
    rules.write_text(
        '[[rule]]\nid = "A"\nexpr = "loss > 1"\nname = "n\\n::error::x"\nmessage = "m\\n::error::\\u001b[0m"\n'
    )
    _, out, err = run_cli("check", path, "--rules", rules, "--format", output)
    assert "forged" in out
    for text in (out, err):
        assert "\x1b" not in text and "\x07" not in text
        lines = text.splitlines()
        assert not [line for line in lines if line.lstrip().startswith(("::", "##["))]
        assert not [line for line in lines if line.startswith("PASS")]


def test_errors_about_rule_files_are_escaped_too(healthy, tmp_path):
    for text in ('[[rule]]\n"a\\n::error::b" = 1\n', '"x\\n::error::y" = 1\n', '[[rule]]\nid = "A\\u001b[0m"\n'):
        rules = tmp_path / "r.toml"
        rules.write_text(text)
        code, out, err = run_cli("check", healthy, "--rules", rules)
        assert (code, out) == (2, "") and len(err.splitlines()) == 1 and "\x1b" not in err
