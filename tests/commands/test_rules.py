"""``loopscope rules``: lists, explains, validates, and tries files on runs, with the exit codes of ``check``."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from loopscope.cli import main
from loopscope.rules.rule_files import find_rule_file, load_rules


def run(capsys, *words):
    with pytest.raises(SystemExit) as ended:
        main(["rules", *map(str, words)])
    out, err = capsys.readouterr()
    return ended.value.code, out, err


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A working directory without a rule file."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)


def wavy(steps=100):
    return 2 + 0.01 * np.sin(np.arange(steps))


def test_the_list_names_every_rule_with_its_page(capsys):
    code, out, _ = run(capsys)
    assert code == 0
    for rule in load_rules():
        (line,) = [line for line in out.splitlines() if line.startswith(f"{rule.id} ")]
        assert rule.name in line and rule.severity in line and f"docs/rules/{rule.id}.md" in line
    listed = json.loads(run(capsys, "--json")[1])
    assert [each["id"] for each in listed["rules"]] == [rule.id for rule in load_rules()]
    assert listed["rules"][0].keys() >= {"expr", "for", "severity", "page", "only", "except", "actions"}


def test_one_rule_is_explained_by_its_page(capsys):
    code, out, _ = run(capsys, "LS020")
    assert code == 0 and out.startswith("# LS020 injection-unstable") and "## What to do" in out
    assert "As it is set here" not in out
    assert json.loads(run(capsys, "LS003", "--json")[1])["page_text"].startswith("# LS003")


def test_a_rule_that_is_set_otherwise_says_how_and_text_of_the_file_is_harmless(capsys, tmp_path):
    file = tmp_path / "own.toml"
    file.write_text(
        '[[rule]]\nid = "LS020"\nfor = 50\n[[rule]]\nid = "M"\nexpr = "loss > 9"\n'
        'remedy = "a\\u001b[31mb\\n::error::x"\n'
    )
    code, out, _ = run(capsys, "LS020", "--rules", file)
    assert code == 0 and "for = 50" in out
    code, out, _ = run(capsys, "M", "--rules", file)
    assert code == 0 and "loss > 9" in out and "\x1b" not in out and "\n::error" not in out
    code, out, _ = run(capsys, "--rules", file)
    assert code == 0 and "loss > 9" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["LS02"], "did you mean LS0"),
        (["nonsense"], "loopscope rules lists them"),
        (["test"], "test FILE RUN"),
        (["test", "a.toml"], "test FILE RUN"),
        (["validate"], "validate FILE"),
        (["LS020", "LS021"], "test FILE RUN"),
        (["test", "missing.toml", "x.h5"], "missing.toml"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_2(capsys, words, says):
    code, out, err = run(capsys, *words)
    assert code == 2 and not out and says in err and err.count("\n") == 1


def test_a_file_is_tried_on_runs(capsys, tmp_path, write_run):
    file = tmp_path / "r.toml"
    file.write_text('[[rule]]\nid = "HIGH"\nexpr = "mean(loss, 10) > 3"\n'
                    '[[rule]]\nid = "RARE"\nexpr = "grad_norm > 3"\nseverity = "warning"\n'
                    '[[rule]]\nid = "OFF"\nexpr = "loss > 0"\nenabled = false\n')  # fmt: skip
    bad = write_run("bad.h5", loss=np.where(np.arange(100) < 50, 2.0, 4.0) + wavy() / 100)
    good = write_run("good.h5", loss=wavy())
    code, out, _ = run(capsys, "test", file, good)
    assert code == 0
    code, out, _ = run(capsys, "test", file, bad, good)
    lines = {tuple(line.split()[:2]): line for line in out.splitlines()[1:]}
    assert code == 1
    assert "91 steps" in lines[str(bad), "HIGH"] and "step 54" in lines[str(bad), "HIGH"]
    assert "not applicable: grad_norm was never recorded" in lines[str(good), "RARE"]
    assert not any("OFF" in key for key in lines)
    code, out, _ = run(capsys, "test", file, bad, good, "--json")
    said = json.loads(out)
    assert code == said["exit_code"] == 1
    (high, _rare) = said["runs"][0]["rules"]
    assert (high["state"], high["steps"], high["finding"]["step"]) == ("judged", 91, 54)
    assert high["lead"] == 0  # a mean over twenty losses stands a tenth above the lowest in the same step


def test_the_exit_codes_are_those_of_check(capsys, tmp_path, write_run):
    file = tmp_path / "r.toml"
    good = write_run("good.h5", loss=wavy())
    broken = tmp_path / "broken.h5"
    broken.write_bytes(b"nothing of the kind")
    stopped = write_run("stopped.h5", loss=np.where(np.arange(200) < 20, wavy(200), math.nan), depth=8.0)
    for text, paths, options, expected in [
        ('expr = "loss > 9"', [good], [], 0),
        ('expr = "loss > 1"', [good], [], 1),
        ('expr = "loss > 1"\nseverity = "warning"', [good], [], 0),
        ('expr = "loss > 1"\nseverity = "warning"', [good], ["--fail-on", "warning"], 1),
        ('expr = "losss > 1"', [good], [], 2),
        ('expr = "loss > 1"\nonly = { colour = "x" }', [good], [], 2),
        ('expr = "state_norm > 1"', [good], [], 2),
        ('expr = "loss > 9"', [good, broken], [], 4),
        ('expr = "loss > 9"', [stopped], [], 5),
    ]:
        file.write_text(f'[[rule]]\nid = "A"\n{text}\n')
        code, _, err = run(capsys, "test", file, *paths, *options)
        assert code == expected, (text, err)


def test_files_are_validated_each_with_its_first_mistake(capsys, tmp_path):
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text('[[rule]]\nid = "A"\nexpr = "loss > 1"\n')
    bad.write_text('[[rule]]\nid = "A"\nexpr = "slope(loss) > 1"\n')
    assert run(capsys, "validate", good)[0] == 0
    code, out, err = run(capsys, "validate", bad, good)
    assert code == 2 and "bad.toml:3:19: rule A" in err and "good.toml: 1 rules, valid" in out


def project(tmp_path, **files):
    for name, text in files.items():
        path = tmp_path / name.replace("__", "/").replace("_toml", ".toml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_the_rule_file_of_a_project_is_found_from_below_and_not_from_above_its_repository(tmp_path):
    project(tmp_path, loopscope_toml="", repo__pyproject_toml='[project]\nname = "x"\n', repo__a__b__c_toml="")
    (tmp_path / "repo" / ".git").mkdir()
    deep = tmp_path / "repo" / "a" / "b"
    assert find_rule_file(deep) is None  # what lies above a repository is not its own
    project(tmp_path, repo__pyproject_toml="[tool.loopscope]\n")
    assert find_rule_file(deep) == tmp_path / "repo" / "pyproject.toml"
    project(tmp_path, repo__loopscope_toml="")
    assert find_rule_file(deep) == tmp_path / "repo" / "loopscope.toml"
    project(tmp_path, repo__a__loopscope_toml="")
    assert find_rule_file(deep) == tmp_path / "repo" / "a" / "loopscope.toml"


def test_outside_of_a_repository_and_of_home_only_the_folder_itself_counts(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    project(tmp_path, loopscope_toml="", home__loopscope_toml="", home__work__x_toml="", scratch__x__y_toml="")
    assert find_rule_file(tmp_path / "home" / "work") == tmp_path / "home" / "loopscope.toml"
    assert find_rule_file(tmp_path / "scratch" / "x") is None
    assert find_rule_file(tmp_path) == tmp_path / "loopscope.toml"


@pytest.mark.parametrize(
    "header", ["[tool.loopscope]\n[[tool.loopscope.rule]]", "[[tool.loopscope.rule]]", '[["tool".loopscope.rule]]']
)
def test_rules_in_pyproject_are_as_strict_and_say_where(tmp_path, capsys, monkeypatch, header):
    above = header.count("\n")
    project(tmp_path, repo__pyproject_toml=f'[project]\nname = "x"\n{header}\nid = "LS020"\nfor = -1\n')
    (tmp_path / "repo" / ".git").mkdir()
    monkeypatch.chdir(tmp_path / "repo")
    code, _, err = run(capsys, "LS020")
    assert code == 2 and f"pyproject.toml:{5 + above}:7: rule LS020: for = -1" in err
    assert "rules of" in err


def test_unknown_names_beside_the_rules_of_pyproject_are_refused(tmp_path, capsys, monkeypatch):
    project(tmp_path, pyproject_toml='[tool.loopscope]\nfail-on = "note"\n')
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys)
    assert code == 2 and "pyproject.toml:2:1: unknown name 'fail-on'" in err


def test_the_project_file_is_in_force_in_check_and_said(tmp_path, write_run, monkeypatch):
    project(tmp_path, loopscope_toml='[[rule]]\nid = "MINE"\nexpr = "loss > 1"\n')
    path = write_run("a.h5", loss=wavy())
    command = [sys.executable, "-m", "loopscope", "check", str(path), "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=os.environ.copy())
    assert done.returncode == 1 and "loopscope.toml" in done.stderr
    assert "MINE" in {finding["rule"] for finding in json.loads(done.stdout)["runs"][0]["findings"]}
    own = tmp_path / "none.toml"
    own.write_text("")
    done = subprocess.run([*command, "--rules", str(own)], capture_output=True, text=True, cwd=tmp_path)
    assert "MINE" not in done.stdout and not done.stderr


def test_check_refuses_a_setting_that_no_run_says(tmp_path, write_run, capsys):
    path = write_run("a.h5", loss=wavy(), info={"config": {"injection": "parcae"}})
    own = tmp_path / "own.toml"
    for key, code in (("injection", 1), ("injektion", 2)):
        own.write_text(f'[[rule]]\nid = "A"\nexpr = "loss > 1"\nonly = {{ {key} = "parcae" }}\n')
        with pytest.raises(SystemExit) as ended:
            main(["check", str(path), "--rules", str(own)])
        assert ended.value.code == code
    assert "no run says its 'injektion'" in capsys.readouterr().err
