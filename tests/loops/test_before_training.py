"""What is known of a loop before its training: each check warns of what it is about, and of nothing else."""

from __future__ import annotations

import json

import pytest
import torch
from loopscope.commands.lint import lint
from loopscope.loops.before_training import Plan, remarks
from loopscope.loops.find import find_site
from loopscope.models import build


def said(model, **plan):
    return {each.id: each for each in remarks(Plan(model, find_site(model), **plan))}


def warned(model, **plan):
    return {name for name, each in said(model, **plan).items() if each.state == "warned"}


@pytest.fixture
def concatenation():
    torch.manual_seed(0)
    return build("demo", injection="concatenation")


def set_a_bar(model, matrix):
    """Give a concatenation another A̅: the left half of its matrix."""
    weight = next(p for name, p in model.named_parameters() if "injection" in name and p.ndim == 2)
    with torch.no_grad():
        weight[:, : weight.shape[0]] = matrix


def test_parcae_is_held_wherever_it_is_pushed_and_stays_as_it_was():
    torch.manual_seed(0)
    model = build("demo", injection="parcae")
    before = {name: p.clone() for name, p in model.named_parameters()}
    assert warned(model, lr=0.5) == set()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_a_free_matrix_is_free_and_hot_rates_are_on_the_map(concatenation):
    assert warned(concatenation, lr=0.001) == {"LL002"}
    assert warned(concatenation, lr=0.03) == {"LL002", "LL007"}
    severities = [said(concatenation, lr=lr)["LL007"].severity for lr in (0.03, 0.05)]
    assert severities == ["warning", "error"]


def test_addition_has_nothing_that_could_move():
    assert warned(build("demo", injection="addition"), lr=0.05) == set()


@pytest.mark.parametrize(("radius", "severity"), [(1.2, "error"), (0.995, "warning")])
def test_a_radius_at_or_above_one_before_the_first_step(concatenation, radius, severity):
    set_a_bar(concatenation, radius * torch.eye(32))
    remark = said(concatenation)["LL001"]
    assert (remark.state, remark.severity) == ("warned", severity) and f"{radius:.4g}" in remark.message


def test_a_radius_that_bfloat16_rounds_to_one(concatenation):
    set_a_bar(concatenation, 0.999 * torch.eye(32))
    assert "LL005" in warned(concatenation)
    set_a_bar(concatenation, 0.99 * torch.eye(32))
    assert "LL005" not in warned(concatenation)


def test_depth_and_norm(concatenation):
    assert "LL006" in warned(concatenation, loops=33) and "LL006" not in warned(concatenation, loops=32)
    assert said(concatenation)["LL006"].state == said(concatenation)["LL003"].state == "not judged"
    assert "LL003" in warned(concatenation, prelude_norm=False) and "LL003" not in warned(
        concatenation, prelude_norm=True
    )


def test_every_remark_that_warns_has_a_source_and_a_remedy(concatenation):
    set_a_bar(concatenation, 1.5 * torch.eye(32))
    for each in remarks(Plan(concatenation, find_site(concatenation), 0.05, 99, False)):
        assert each.state != "warned" or (each.source and each.remedy and each.message)


def test_a_loop_that_expands_at_its_start(concatenation, tmp_path, capsys):
    from loopscope.loops.analysis import linearize

    set_a_bar(concatenation, 1.6 * torch.eye(32))
    seen = linearize(concatenation, torch.zeros(1, 4, dtype=torch.int64), num_loops=16, budget=20)
    assert "LL004" in warned(concatenation, linearized=seen)


def test_a_configuration_and_a_factory_by_the_command(tmp_path, monkeypatch, capsys):
    (tmp_path / "hot.toml").write_text('preset = "demo"\n[model]\ninjection = "concatenation"\n[train]\nlr = 0.05\n')
    options = {"lr": None, "loops": None, "fail_on": "error"}
    assert lint(str(tmp_path / "hot.toml"), output="json", **options) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["exit_code"] == 1 and {r["id"] for r in found["remarks"] if r["state"] == "warned"} >= {
        "LL002",
        "LL007",
    }
    (tmp_path / "mine_to_lint.py").write_text(
        "import torch\ndef flat():\n    return torch.nn.Linear(3, 3)\ndef bad():\n    raise KeyError('mine')\n"
        "def number():\n    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    assert lint("mine_to_lint:flat", output="text", **options) == 5
    shown = capsys.readouterr()
    assert shown.out.startswith("ERROR") and "Linear does not state where its loop is" in shown.err
    for name, why in (("bad", "failed: KeyError"), ("number", "gave a int"), ("none", "expected a TOML file")):
        with pytest.raises(ValueError, match=why):
            lint(f"mine_to_lint:{name}", output="text", **options)
