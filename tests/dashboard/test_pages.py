"""Pages and callbacks through Flask's test client: no browser, the same requests a browser sends."""

import json

import numpy as np
import pytest
from loopscope.dashboard import index as index_module
from loopscope.dashboard.panels import STEP_PLOTS, STUDY_PLOTS
from loopscope.runfile.reader import Run
from loopscope.runfile.writer import RunWriter


@pytest.fixture(autouse=True)
def scan_every_time(monkeypatch):
    monkeypatch.setattr(index_module, "RESCAN_SECONDS", 0.0)
    monkeypatch.setattr(index_module, "RESCAN_REST", 0.0)


def rows(client) -> dict[str, dict]:
    page = client.page("/")["_pages_content"]["children"]
    grid = next(child for child in page["props"]["children"] if child["type"] == "AgGrid")
    return {row["name"]: row for row in grid["props"]["rowData"]}


def run_id(client, name: str) -> str:
    return next(entry.id for entry in client.index.entries() if entry.name == name)


def find(component, identifier: str | dict):
    """Find a component of a page by its id, wherever it is."""
    if isinstance(component, dict):
        if component.get("props", {}).get("id") == identifier:
            return component["props"]
        component = list(component.get("props", {}).values())
    if isinstance(component, list):
        return next((hit for child in component if (hit := find(child, identifier)) is not None), None)
    return None


def test_table_says_regimes_numbers_and_first_breach(client, runs):
    table = rows(client(runs))
    assert table["concatenation"]["lti"] == table["concatenation"]["trajectory"] == "unstable"
    assert table["addition"]["lti"] == "marginal" and table["parcae/seed0"]["verdict"] == "stable"
    assert table["concatenation"]["breach"].startswith("step ") and table["parcae/seed0"]["breach"] == "none"
    row = table["parcae/seed0"]
    assert (row["steps"], row["state"]) == (200, "finished")
    assert row["radius"] == pytest.approx(0.45 + 0.35 * 199 / 200)  # ρ as the fixture wrote it, float64 all the way


def test_broken_and_empty_runs_are_rows_with_their_reason(client, runs):
    table = rows(client(runs))
    assert table["foreign"]["state"] == "unreadable" and "not an HDF5 file" in table["foreign"]["fault"]
    assert table["no rows"]["steps"] == 0 and "no step was recorded" in table["no rows"]["fault"]


@pytest.mark.parametrize("kept", [6, 40, 10_000])
def test_truncated_runs_are_rows_too(client, tmp_path, write_run, kept):
    whole = write_run(tmp_path / "cut.h5", steps=300)
    whole.write_bytes(whole.read_bytes()[:kept])
    served = client(tmp_path)
    assert rows(served)["cut"]["state"] == "unreadable"
    assert "cannot be read" in json.dumps(served.page(f"/run/{run_id(served, 'cut')}"))


def test_poll_of_the_table_sends_rows_only_when_something_changed(client, runs, write_run):
    served = client(runs)
    shown = list(rows(served).values())
    same = served.fire("runs.rowData", {"runs-poll-tick.data": 1, "runs.rowData": shown})
    assert same == {"runs-poll-rows": {"data": 1}}  # answered: the next question may come
    write_run(runs / "late.h5", steps=5)
    fresh = served.fire("runs.rowData", {"runs-poll-tick.data": 2, "runs.rowData": shown})
    assert "late" in [row["name"] for row in fresh["runs"]["rowData"]]


def test_old_runs_are_not_read_again_for_the_table(client, runs, write_run, monkeypatch):
    served = client(runs)
    before = rows(served)
    monkeypatch.setattr(type(served.index), "open", lambda *_: pytest.fail("a run nobody wrote was opened again"))
    assert rows(served) == before
    monkeypatch.undo()
    write_run(runs / "other.h5", steps=7)
    (runs / "other.h5").replace(runs / "addition.h5")
    assert rows(served)["addition"]["steps"] == 7


def test_losses_that_are_not_finite_are_marked_and_do_not_break_the_table(client, tmp_path):
    with RunWriter.create(tmp_path / "nan.h5", info={}) as writer:
        for step, loss in enumerate((3.0, float("nan"), float("inf"))):
            writer.append_step({"step": step, "loss": loss})
    served = client(tmp_path)
    assert rows(served)["nan"]["loss"] == "inf"
    page = served.page(f"/run/{run_id(served, 'nan')}")["_pages_content"]["children"]
    marked = find(page, "plot-loss")["figure"]["data"][1]
    assert marked["name"] == "loss not finite" and len(marked["y"]) > 0


def test_run_page_has_verdict_findings_and_every_plot(client, runs):
    served = client(runs)
    page = served.page(f"/run/{run_id(served, 'concatenation')}")["_pages_content"]["children"]
    text = json.dumps(page, ensure_ascii=False)
    assert "explodes" in text and "Try: " in text and "LS020" in text
    for plot in ("loss", "radius", "heatmap", "profile", "state", "spectrum"):
        graph = find(page, f"plot-{plot}")
        assert graph["figure"]["data"], plot
        assert graph["config"]["showSendToCloud"] is False and graph["config"]["plotlyServerURL"] == ""
    assert find(page, "run-poll")["disabled"] is True  # finished: nothing to wait for


def test_run_without_rows_has_a_page_of_explanations(client, runs):
    served = client(runs)
    page = served.page(f"/run/{run_id(served, 'no rows')}")["_pages_content"]["children"]
    for plot in ("loss", "radius", "heatmap", "profile", "state", "spectrum"):
        figure = find(page, f"plot-{plot}")["figure"]
        assert not figure["data"] and "recorded" in figure["layout"]["annotations"][0]["text"], plot


def test_study_data_and_flights_are_on_the_page(client, tmp_path, write_run):
    write_run(tmp_path / "s.h5", end=1.4, study=True)
    served = client(tmp_path)
    page = served.page(f"/run/{run_id(served, 's')}")["_pages_content"]["children"]
    for plot in STUDY_PLOTS:
        assert find(page, f"plot-{plot}")["figure"]["data"] and find(page, f"card-{plot}")["hidden"] is False
    assert find(page, "study-hint")["hidden"] is True
    assert find(page, "plot-blocks")["figure"]["layout"]["yaxis"]["ticktext"] == ["prelude.0", "injection", "core.0"]
    assert find(page, "flights")["hidden"] is False
    said = json.dumps(find(page, "flights")["children"])
    assert "around steps 150, 175" in said and "loss spike: " in said and "72: 87 to 158" in said
    assert find(page, {"type": "goto", "step": 150, "rule": "flight 0"})["children"] == "step 150"


def test_runs_without_study_data_have_no_empty_plots_of_it_but_say_how_to_get_it(client, runs):
    served = client(runs)
    for name in ("concatenation", "no rows"):
        page = served.page(f"/run/{run_id(served, name)}")["_pages_content"]["children"]
        assert all(find(page, f"card-{plot}")["hidden"] for plot in STUDY_PLOTS)
        assert find(page, "flights")["hidden"] is True and find(page, "card-loss")["hidden"] is False
        hint = find(page, "study-hint")
        assert hint["hidden"] is False and 'preset=\\"study\\"' in json.dumps(hint)


def test_the_map_over_tokens_is_the_last_one_up_to_the_selected_step(client, tmp_path, write_run):
    write_run(tmp_path / "s.h5", study=True)
    served = client(tmp_path)
    state = {"run-id.data": run_id(served, "s")}
    for selected, shown in ((None, 190), (47, 40), (0, 0)):
        found = served.fire("plot-tokens.figure", {**state, "selected.data": selected})
        assert f"step {shown}" in found["plot-tokens"]["figure"]["layout"]["title"]["text"]


def test_study_data_of_several_ranks_is_that_of_the_first(client, tmp_path, write_run):
    for rank, name in enumerate(("a.h5", "a.rank1.h5")):
        write_run(tmp_path / name, study=rank == 0, end=1.4, rank=rank, world_size=2)
    served = client(tmp_path)
    page = served.page(f"/run/{run_id(served, 'a')}")["_pages_content"]["children"]
    assert all(find(page, f"plot-{plot}")["figure"]["data"] for plot in STUDY_PLOTS)
    assert "all 2 ranks" in json.dumps(find(page, "flights")["children"])


def test_study_data_that_comes_late_appears_on_a_page_that_is_open(client, tmp_path, training):
    pretended = training(tmp_path / "live.h5", steps=100)
    pretended.step(0)
    pretended.writer.flush()
    served = client(tmp_path)
    one = run_id(served, "live")
    assert find(served.page(f"/run/{one}")["_pages_content"]["children"], "card-blocks")["hidden"] is True
    pretended.study = True
    for step in range(1, 100):
        pretended.step(step)
    pretended.writer.flush()
    appeared = served.fire("flights.children", {"run-id.data": one})
    assert [appeared[f"card-{plot}"]["hidden"] for plot in STUDY_PLOTS] == [False] * 3
    assert appeared["study-hint"]["hidden"] is True and appeared["flights"]["hidden"] is False
    drawn = served.fire("plot-loss.figure...plot-radius.figure...", {"run-id.data": one})
    assert drawn["plot-blocks"]["figure"]["data"] and drawn["plot-gradients"]["figure"]["data"]


@pytest.mark.parametrize("address", ["/run/nonsense", "/run/..%2f..%2fetc", "/nowhere"])
def test_unknown_addresses_say_so(client, runs, address):
    assert "No such" in json.dumps(client(runs).page(address))


def test_step_in_the_address_is_shown_and_nonsense_means_newest(client, runs):
    served = client(runs)
    address = f"/run/{run_id(served, 'concatenation')}"
    for query, selected in (("?step=120", 120), ("?step=banana", None), ("", None), ("?step=-5", -5)):
        page = served.page(address + query)["_pages_content"]["children"]
        assert find(page, "selected")["data"] == selected
        title = find(page, "plot-profile")["figure"]["layout"]["title"]["text"]
        assert f"training step {({120: 120, -5: 0, None: 199})[selected]}" in title


def test_selecting_a_step_redraws_profile_and_spectrum_and_moves_the_cursor(client, runs):
    served = client(runs)
    one = run_id(served, "concatenation")
    found = served.fire("plot-profile.figure", {"selected.data": 47, "run-id.data": one})
    assert "training step 47" in found["plot-profile"]["figure"]["layout"]["title"]["text"]
    assert "step 40" in found["plot-spectrum"]["figure"]["layout"]["title"]["text"]  # spectra are every 10 steps
    assert found["now"]["children"] == "step 47 of 199"
    key = next(key for key in served.app.callback_map if "plot-loss.figure@" in key)
    moved = json.dumps(served.fire(key, {"selected.data": 47}))
    assert moved.count('"x0"') == len(STEP_PLOTS) and "47" in moved


def test_zoom_sends_the_visible_range_only(client, runs):
    served = client(runs)
    state = {"view.data": [50, 60], "run-id.data": run_id(served, "concatenation")}
    found = served.fire("plot-loss.figure...plot-radius.figure...", state)
    layout = found["plot-loss"]["figure"]["layout"]
    assert layout["xaxis"]["range"] == [50, 60] and layout["uirevision"] == state["run-id.data"]


def test_live_run_grows_and_polling_stops_at_the_end(client, tmp_path, training):
    pretended = training(tmp_path / "live.h5", steps=100)
    for step in range(10):
        pretended.step(step)
    pretended.writer.flush()
    served = client(tmp_path)
    one = run_id(served, "live")
    page = served.page(f"/run/{one}")["_pages_content"]["children"]
    assert find(page, "run-poll")["disabled"] is False and find(page, "slider")["max"] == 9
    state = {"run-id.data": one, "version.data": find(page, "version")["data"]}
    answered = {"run-poll-plots": {"data": 7}, "run-poll-details": {"data": 7}}
    assert served.fire("version.data", state | {"run-poll-tick.data": 7}) == answered  # no news: nothing else is due
    for step in range(10, 30):
        pretended.step(step)
    pretended.writer.flush()
    grown = served.fire("version.data", state)
    assert answered.keys().isdisjoint(grown)  # the plots are: they answer when they are drawn
    assert grown["slider"]["max"] == grown["slider"]["value"] == 29 and grown["run-poll"]["disabled"] is False
    kept = served.fire("version.data", {**state, "selected.data": 3})
    assert "value" not in kept["slider"]  # a selected step stays selected
    pretended.writer.seal()
    pretended.writer.close()
    ended = served.fire("version.data", {**state, "version.data": grown["version"]["data"]})
    assert ended["run-poll"]["disabled"] is True and "finished" in json.dumps(ended["state"])


def test_a_page_leaves_the_machine_to_the_training_it_follows(client, tmp_path, training, monkeypatch):
    pretended = training(tmp_path / "live.h5", steps=100)
    pretended.step(0)
    pretended.writer.flush()
    served = client(tmp_path)
    one = run_id(served, "live")
    state = {"run-id.data": one, "version.data": "old"}
    assert served.fire("version.data", state)["run-poll"]["interval"] == 1000
    held = served.index.open(served.index.find(one))
    monkeypatch.setattr(held, "_took", {"plots": 0.2, "details": 0.1})
    assert served.fire("version.data", state)["run-poll"]["interval"] == 3000
    served.fire("plot-loss.figure", state)
    assert held.took > 0.1 and held.took != 0.3  # the plots were measured anew, the details are those of before
    monkeypatch.setattr(held, "_took", {"plots": 60.0})
    assert served.fire("version.data", state)["run-poll"]["interval"] == 5000


def test_run_that_vanishes_stops_polling_with_a_reason(client, runs):
    served = client(runs)
    one = run_id(served, "addition")
    served.page(f"/run/{one}")
    (runs / "addition.h5").unlink()
    gone = served.fire("version.data", {"run-id.data": one, "version.data": "old"})
    assert gone["run-poll"]["disabled"] is True and "cannot be read any more" in json.dumps(gone["verdict"])


def test_run_of_one_row_without_loops_has_a_page(client, tmp_path):
    with RunWriter.create(tmp_path / "one.h5", info={}) as writer:
        writer.append_step({"step": 7, "loss": 2.0})
    served = client(tmp_path)
    page = served.page(f"/run/{run_id(served, 'one')}")["_pages_content"]["children"]
    assert find(page, "plot-loss")["figure"]["data"] and not find(page, "plot-heatmap")["figure"]["data"]


def test_long_run_is_sent_in_bounded_size(client, tmp_path, write_run):
    write_run(tmp_path / "long.h5", steps=20_000, end=1.3)
    served = client(tmp_path)
    address = f"/run/{run_id(served, 'long')}"
    page = served.page(address)
    found = served.fire(
        "plot-loss.figure...plot-radius.figure...", {"view.data": [1000, 19_000], "run-id.data": address[5:]}
    )
    assert len(json.dumps(page)) < 800_000 and len(json.dumps(found)) < 500_000


def test_very_many_arrays_are_sent_in_bounded_size_and_only_new_ones_are_read(client, tmp_path, monkeypatch):
    count = 5_000  # of each of two names
    with RunWriter.create(tmp_path / "many.h5", info={}) as writer:
        for step in range(count):
            writer.append_array(step, "block_state_norm", np.ones(12, np.float32))
            writer.append_array(step, "state_gradient_norm", np.full(9, step + 1, np.float32))
        writer.append_step({"step": count, "loss": 2.0})
        assert writer.flush()
        served = client(tmp_path)
        state = {"run-id.data": run_id(served, "many")}
        page = served.page(f"/run/{state['run-id.data']}")
        writer.append_array(count, "block_state_norm", np.ones(12, np.float32))
        assert writer.flush()
        read = []
        values = Run._array_values
        monkeypatch.setattr(Run, "_array_values", lambda run, rows: read.append(len(rows)) or values(run, rows))
        drawn = served.fire("plot-loss.figure...plot-radius.figure...", state)
    assert len(json.dumps(page)) < 800_000 and len(json.dumps(drawn)) < 500_000
    assert sorted(read) == [0, 1]
