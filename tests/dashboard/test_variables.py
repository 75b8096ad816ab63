"""The tensors that a loop carries: each has its own loops on the tab Where, chosen in the page and in the address."""

import numpy as np
import pytest
from loopscope.dashboard import glossary
from loopscope.dashboard.opened import OpenRun
from loopscope.dashboard.panel import Ask, drawn, table
from loopscope.dashboard.panels import PANELS
from loopscope.dashboard.report import report_html
from loopscope.dashboard.row_cells import cells_of
from loopscope.runfile.writer import RunWriter

from .two_variables import write_two


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
