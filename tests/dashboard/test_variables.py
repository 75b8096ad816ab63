"""The tensors that a loop carries: each has its own loops on the tab Where, chosen in the page and in the address."""

from dataclasses import replace

import loopscope
import numpy as np
import pytest
import torch
from loopscope.dashboard import glossary
from loopscope.dashboard.opened import OpenRun
from loopscope.dashboard.panel import Ask, drawn, table
from loopscope.dashboard.panels import PANELS
from loopscope.dashboard.report import report_html
from loopscope.dashboard.row_cells import cells_of
from loopscope.probes.schedule import inspecting
from loopscope.rules.findings import Finding
from loopscope.rules.variable_verdicts import VariableVerdict
from loopscope.runfile.writer import RunWriter
from torch import Tensor, nn

from .two_variables import write_two

ERROR = Finding("LS030", "state-explosion", "error", 169, 149, 1.4, 1.1, "the state explodes", "", 1, variable="z_H")


@pytest.fixture
def two(tmp_path):
    """Write a run whose loop carries z_H, of size 2, and z_L, of size 7 and updated twice as often."""
    path = tmp_path / "two.h5"
    with RunWriter.create(path, info={"variables": ["z_H", "z_L"]}) as writer:
        for step in range(30):
            loops = np.tile(np.array([5.0, 1.0, 0.5, 8.0], np.float32), (4, 1))
            loops[-1, 1] = loops[0, 2] = loops[-1, 2] = np.nan
            writer.append_step({"step": step, "loss": 3.0}, loops)
            if step % 2 == 0:
                for index, (size, updates) in enumerate(((2.0, 3), (7.0, 6))):
                    rows = np.tile(np.array([size, 1, 0.5, 8, 0, 0], np.float32), (updates + 1, 1))
                    writer.append_variable(step, index, rows)
        writer.flush()
        writer.seal()
    return path


@pytest.mark.parametrize(("variable", "size", "updates"), [("z_H", 2.0, 4), ("z_L", 7.0, 7)])
def test_a_heatmap_shows_the_variable_asked_for(two, variable, size, updates):
    held = OpenRun(two)
    ask = Ask(held, batch=f"variable:{variable}")
    chart = drawn(PANELS["heat-state"], ask)
    z = np.asarray(chart.data[0].z, float)
    assert z.shape == (updates, 15) and z == pytest.approx(np.log10(size), abs=1e-6)
    assert variable in chart.layout.annotations[0].text
    columns = table(PANELS["heat-state"], ask)
    assert columns["step"].tolist() == list(range(0, 30, 2)) and len(columns) == updates + 1
    held.close()


def test_the_page_offers_them_and_a_strange_one_falls_back(client, two):
    here = client(two)
    run = here.index.entries()[0].id
    page = str(here.page(f"/run/{run}?tab=where&batch=variable:z_L"))
    assert "'value': 'variable:z_L'" in page and "z_L, training steps" in page
    strange = str(here.page(f"/run/{run}?tab=where&batch=variable:<b>"))
    assert "z_L, training steps" not in strange and "<b>" not in strange.replace("variable:<b>", "")


def test_the_strip_says_which_variable_fails_and_since_when(client, tmp_path):
    """One settles throughout, the other from step 10 on no more; their names are written as they are."""
    path, t = tmp_path / "fails.h5", np.arange(16.0)
    with RunWriter.create(path, info={"variables": ["z_H", "z_L"]}) as writer:
        for step in range(40):
            loops = np.tile(np.array([5.0, 1.0, 0.5, 8.0], np.float32), (4, 1))
            loops[-1, 1] = loops[0, 2] = loops[-1, 2] = np.nan
            writer.append_step({"step": step, "loss": 3.0}, loops)
            if step % 10 == 0:
                measured = np.full((2, 17, 3), np.nan, np.float32)
                for number, ratio in enumerate((0.6, 0.7 if step < 10 else 1.0)):
                    measured[number, :, 0], measured[number, :-1, 1] = 1.0, 0.1 * ratio**t
                    measured[number, 1:-1, 2] = -0.5
                writer.append_array(step, "variable_passes", measured)
        writer.flush()
        writer.seal()
    here = client(path)
    page = str(here.page(f"/run/{here.index.entries()[0].id}"))
    said = OpenRun(path).story().variables
    assert [one.said for one in said] == [
        "z_H settles geometrically",
        "z_L orbits since step 10 (at step 0 it still settled; LS031 loop-does-not-settle, alarm at step 30)",
    ]
    assert "By variable: " in page and " since step 10 (at step 0 it still settled; " in page
    assert "'z_L: on the fixed batch" in page and "began at step 10" in page


@pytest.mark.parametrize(("name", "how", "rule"), [("z_L", "explodes", "LS030"), ("z_H", "nan", "LS001")])
def test_a_report_says_which_variable_fails_and_what_the_words_mean(tmp_path, name, how, rule):
    document = report_html([write_two(tmp_path / "a.h5", name, how)])
    assert f"{name} fails, " in document and f"By variable: {name} fails: it " in document
    assert f"since step 40 ({rule} " in document or "(at step 20 it still settled; " + rule in document
    assert document.count("By variable:") == 1 and glossary.WORDS["unstable"] in document


def test_the_gate_names_the_variable_of_a_finding(tmp_path):
    held = OpenRun(write_two(tmp_path / "a.h5", "z_L"))
    assert "LS030 state-explosion of z_L (alarm at step" in held.story().gate_sentence
    assert held.story().failing == "z_L explodes since step 40"
    held.close()


def test_the_search_of_runs_finds_a_variable_and_the_row_names_its_rule(tmp_path):
    held = OpenRun(write_two(tmp_path / "a.h5", "z_H", "nan"))
    row = cells_of(held)
    told = (row["variable"], row["variable_name"], row["variable_step"], row["variable_rule"])
    assert told == ("z_H is not finite since step 40", "z_H", 40, "LS001 non-finite")
    held.close()
    sound = OpenRun(write_two(tmp_path / "b.h5"))
    assert cells_of(sound)["variable"] == "" and not any(one.fails for one in sound.story().variables)
    sound.close()


class Grows(nn.Module):
    """Two variables in the structure of TRM: z_L is normalised at its end, z_H is kept by a factor that is learned."""

    def __init__(self, keep: float) -> None:
        super().__init__()
        self.embed, self.low, self.head = nn.Embedding(8, 6), nn.Linear(6, 6), nn.Linear(6, 8)
        self.high = High(keep)

    def forward(self, tokens: Tensor) -> Tensor:
        e = self.embed(tokens)
        z_h = z_l = 0.3 + 0 * e
        for _ in range(3):
            for _ in range(4):
                z_l = loopscope.mark(unit(0.2 * self.low(z_l + unit(z_h)) + e), "z_L")
            z_h = loopscope.mark(self.high(z_h, z_l), "z_H")
        return self.head(unit(z_h))


class High(nn.Module):
    def __init__(self, keep: float) -> None:
        super().__init__()
        self.keep = nn.Parameter(torch.tensor(keep))

    def forward(self, z_h: Tensor, z_l: Tensor) -> Tensor:
        return self.keep * z_h + z_l


def unit(h: Tensor) -> Tensor:
    return h / (h.square().mean(-1, keepdim=True) + 1e-5).sqrt()


@pytest.fixture(scope="module")
def fails_alone(tmp_path_factory):
    """A training in which z_H begins to grow at step 30: its factor is raised from 0.5 to 1.3."""
    path = tmp_path_factory.mktemp("runs") / "fails.h5"
    torch.manual_seed(0)
    model = Grows(0.5)
    tokens = torch.arange(10).reshape(2, 5) % 8
    config = {"train": {"lr": 0.01}}
    with loopscope.attach(model, path, preset=inspecting(10, 80), config=config) as probe:
        for step in range(80):
            if step == 30:
                with torch.no_grad():
                    model.high.keep.fill_(1.3)
            probe.step(loss=model(tokens).square().mean(), lr=0.01)
    return path


def test_a_training_in_which_one_variable_fails_is_told_since_when_why_and_what_to_do(fails_alone):
    held = OpenRun(fails_alone)
    story = held.story()
    assert story.verdict == "unstable" and story.since == 39
    assert story.sentence.startswith(
        "Unstable since step 39: z_H fails, z_L does not; each pass multiplies the step of z_H by 1.3; "
    )
    assert story.advice == "Lower the learning rate, or normalise z_H in every pass."
    first, second = story.variables
    assert first.said.startswith("z_H fails: it explodes since step 39 (at step 29 it still settled; LS030 ")
    assert (second.name, second.kind) == ("z_L", "settling")
    held.close()


def test_the_profile_of_a_variable_shows_the_passes_that_its_verdict_rests_on(fails_alone):
    held = OpenRun(fails_alone)
    ask = Ask(held, batch="variable:z_H")
    chart = drawn(PANELS["profile"], ask)
    assert "z_H, passes on the fixed batch, step 79" in chart.layout.annotations[0].text
    state, step, *laws = chart.data
    assert len(state.x) == 65 and len(step.x) == 64
    ratios = np.asarray(step.y, float)[30:] / np.asarray(step.y, float)[29:-1]
    assert ratios == pytest.approx(1.3, rel=1e-3) and laws[0].name == "×1.3 per loop"
    assert len(table(PANELS["profile"], ask)["loop"]) == 65
    other = drawn(PANELS["profile"], Ask(held, batch="variable:z_L"))
    assert "z_L, passes on the fixed batch, step 79" in other.layout.annotations[0].text
    assert "training step 79" in drawn(PANELS["profile"], Ask(held, batch="training")).layout.annotations[0].text
    held.close()


def test_a_variable_that_failed_and_does_not_any_more_is_named_beside_the_gate_that_fails(tmp_path):
    said = VariableVerdict("z_H", "drifting", "marginal", "drifts", 299, before=(249, "exploded"), finding=ERROR)
    assert not said.fails and said.failed and said.brief == "z_H failed, now drifts since step 299"
    assert "LS030 state-explosion, alarm at step 169" in said.said
    note = replace(ERROR, severity="note", rule="LS031", name="loop-does-not-settle", step=20)
    orbits = VariableVerdict("z_L", "orbiting", "marginal", "orbits", 249, before=(199, "still settled"), finding=note)
    assert not orbits.failed and orbits.said == "z_L orbits since step 249 (at step 199 it still settled)"
    path = write_two(tmp_path / "a.h5", "z_L", until=100)
    held = OpenRun(path)
    row = cells_of(held)
    assert held.story().gate == "fail" and not any(one.fails for one in held.story().variables)
    assert (
        row["variable"] == "z_L failed, now settles geometrically" and row["variable_rule"] == "LS030 state-explosion"
    )
    held.close()
