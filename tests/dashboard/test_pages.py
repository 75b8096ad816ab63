"""Pages and callbacks through Flask's test client: no browser, the same requests a browser sends."""

import csv
import io
import json
import time

import numpy as np
import pytest
from loopscope.dashboard import index as index_module
from loopscope.dashboard.example import example_runs
from loopscope.dashboard.opened import OpenRun
from loopscope.dashboard.pages import all_pages
from loopscope.dashboard.panel import Ask, drawn, table
from loopscope.dashboard.panels import PANELS
from loopscope.dashboard.tabs import all_tabs
from loopscope.runfile.layout import Event
from loopscope.runfile.recorded_arrays import RecordedArrays
from loopscope.runfile.tables import Tables
from loopscope.runfile.writer import RunWriter


@pytest.fixture(autouse=True)
def scan_every_time(monkeypatch):
    monkeypatch.setattr(index_module, "RESCAN_SECONDS", 0.0)
    monkeypatch.setattr(index_module, "RESCAN_REST", 0.0)


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


def every(component) -> list[dict]:
    """Return every component in a part of a page, in order."""
    if isinstance(component, dict):
        inner = [one for value in component.values() for one in every(value)]
        return [component, *inner] if "type" in component and "props" in component else inner
    return [one for child in component for one in every(child)] if isinstance(component, list) else []


def shown(client, name: str, query: str = "") -> dict:
    return client.page(f"/run/{run_id(client, name)}{query}")["_pages_content"]["children"]


def panel(page: dict, name: str) -> dict:
    kind = "panel-at" if PANELS[name].at_step else "panel"
    return find(page, {"type": kind, "name": name})["figure"]


def words(component) -> str:
    return json.dumps(component, ensure_ascii=False)


def test_the_bar_holds_the_pages_that_exist_in_their_order(client, runs):
    bar = words(client(runs).get("/_dash-layout").get_json())
    linked = [page for page in all_pages() if page.link]
    assert linked[0].path == "/" and [page.place for page in linked] == sorted(page.place for page in linked)
    at = [bar.index(f'"href": "{page.path}"') for page in linked if page.path != "/"]
    assert at == sorted(at)
    assert len({page.name for page in all_pages()}) == len(all_pages())


def test_every_tab_of_every_kind_of_run_has_a_page(client, runs, tmp_path, write_run):
    write_run(tmp_path / "study.h5", end=1.4, study=True)
    served = client(runs)
    for name in ("study", "concatenation", "no rows"):
        for tab in all_tabs().values():
            page = shown(served, name, f"?tab={tab.name}")
            assert find(page, "tab")["data"] == tab.name
            for one in tab.panels:
                figure = panel(page, one)
                assert "cannot be drawn" not in words(figure)
                assert figure["data"] or "recorded" in words(figure["layout"]["annotations"]), (name, one)
                assert figure["layout"]["meta"]["summary"].startswith(PANELS[one].title)
                graph = find(page, {"type": "panel-at" if PANELS[one].at_step else "panel", "name": one})
                assert graph["config"]["showSendToCloud"] is False and graph["config"]["plotlyServerURL"] == ""


def test_the_strip_says_it_in_one_sentence_and_the_findings_in_their_order(client, runs):
    page = shown(client(runs), "concatenation")
    strip, body = words(find(page, "verdict")), words(find(page, "tab-words"))
    assert "The gate fails: LS0" in strip
    assert "Unstable since step" in strip and "per loop" in strip and "steps later" in strip
    assert (
        "in the order in which it began" in body
        and "LS020" in body
        and "Try: " in body
        and "steps before the loss" in body
    )
    assert find(page, "run-poll")["disabled"] is True  # finished and judged: nothing to wait for


@pytest.mark.parametrize("address", ["/run/nonsense", "/run/..%2f..%2fetc", "/nowhere"])
def test_unknown_addresses_say_so(client, runs, address):
    assert "No such" in json.dumps(client(runs).page(address))


@pytest.mark.parametrize("kept", [6, 40, 10_000])
def test_truncated_runs_have_a_page_that_says_so(client, tmp_path, write_run, kept):
    whole = write_run(tmp_path / "cut.h5", steps=300)
    whole.write_bytes(whole.read_bytes()[:kept])
    assert "cannot be read" in words(shown(client(tmp_path), "cut"))


def test_step_tab_and_batch_in_the_address_are_shown_and_nonsense_means_newest(client, runs):
    served = client(runs)
    for query, selected, step in (
        ("?tab=where&step=120", 120, 120),
        ("?tab=where&step=banana", None, 199),
        ("?tab=where", None, 199),
        ("?tab=where&step=-5", -5, 0),
        (f"?tab=where&step={'9' * 60}", None, 199),
    ):
        page = shown(served, "concatenation", query)
        assert find(page, "selected").get("data") == selected
        assert f"training step {step}" in words(panel(page, "profile")["layout"]["annotations"])
    assert find(shown(served, "concatenation", "?tab=<script>"), "tab")["data"] == "when"
    page = shown(served, "concatenation", "?tab=where&batch=training")
    assert find(page, "batch")["data"] == "training" and "training steps" in words(panel(page, "heat-state")["layout"])
    assert "fixed batch" in words(panel(shown(served, "concatenation", "?tab=where"), "heat-state")["layout"])


HOSTILE = "<a href='javascript:alert(1)'>x</a><b>&amp;</b>"


def test_text_of_a_file_is_never_markup_in_a_plot(client, tmp_path):
    with RunWriter.create(tmp_path / "odd.h5", info={"site": {"prelude": [HOSTILE], "sublayers": [HOSTILE]}}) as writer:
        for step in range(3):
            writer.append_step({"step": step, "loss": 2.0})
            writer.append_array(step, "block_state_norm", np.ones(2, np.float32))
        writer.append_event(Event(1, 0.0, "<i>kind</i>", "error", message=HOSTILE))
        writer.flush()
    held = OpenRun(tmp_path / "odd.h5")
    for one in ("events", "blocks"):
        said = drawn(PANELS[one], Ask(held)).to_json()
        assert (
            "<a" not in said.replace("\\u003c", "<")
            and "<b>" not in said.replace("\\u003c", "<")
            and "&lt;a" in said.replace("\\u0026", "&")
        )
    held.close()


def test_a_fault_in_one_panel_costs_that_panel(client, runs, monkeypatch):
    monkeypatch.setattr(OpenRun, "flights", lambda held: 1 / 0)
    page = shown(client(runs), "concatenation")
    assert "cannot be drawn: ZeroDivisionError" in words(panel(page, "events")["layout"]["annotations"])
    assert panel(page, "loss")["data"]


def test_live_run_grows_and_polling_stops_at_the_end(client, tmp_path, training):
    pretended = training(tmp_path / "live.h5", steps=100)
    for step in range(10):
        pretended.step(step)
    pretended.writer.flush()
    served = client(tmp_path)
    one = run_id(served, "live")
    page = shown(served, "live")
    assert find(page, "run-poll")["disabled"] is False and find(page, "bounds")["data"] == [0, 9, 0]
    parts = [f"run-poll-{part}" for part in ("plots", "details", "words")]
    state = {"run-id.data": one, "version.data": "", "run-poll-tick.data": 6}
    first = served.fire("version.data", state)
    state |= {"version.data": first["version"]["data"], "run-poll-tick.data": 7, "bounds.data": first["bounds"]["data"]}
    state |= {f"{part}-latest.data": 6 for part in parts}
    answered = {part: {"data": 7} for part in parts}
    assert served.fire("version.data", state) == answered  # no news: nothing else is due
    lost = served.fire("version.data", state | {"run-poll-words-latest.data": 5})
    assert lost["version"]["data"] != state["version.data"]  # what the page was told at tick 6 did not all arrive
    for step in range(10, 30):
        pretended.step(step)
    pretended.writer.flush()
    grown = served.fire("version.data", state)
    assert answered.keys().isdisjoint(grown)  # the plots are: they answer when they are drawn
    assert grown["bounds"]["data"] == [0, 29, 0] and grown["run-poll"]["disabled"] is False
    pretended.writer.seal()
    pretended.writer.close()
    ended = served.fire("version.data", {**state, "version.data": grown["version"]["data"]})
    assert ended["run-poll"]["disabled"] is True and "finished" in json.dumps(ended["state"])


def test_a_tick_of_a_live_run_reads_its_new_rows_only(tmp_path, training, monkeypatch):
    pretended = training(tmp_path / "live.h5", steps=100)
    for step in range(100):
        pretended.step(step)
    pretended.writer.flush()
    held = OpenRun(tmp_path / "live.h5")
    asked = Ask(held, batch="training")
    for name in ("loss", "state", "gain"):
        drawn(PANELS[name], asked)
    pretended.step(100)
    pretended.writer.flush()
    read = []
    for name in ("read", "read_columns"):
        original = getattr(Tables, name)

        def counted(own, of, rows, *rest, original=original):
            if own.path == tmp_path / "live.h5":  # threads of other tests may read on
                read.append((of, rows.stop - rows.start))
            return original(own, of, rows, *rest)

        monkeypatch.setattr(Tables, name, counted)
    held.refresh()
    for name in ("loss", "state", "gain"):
        drawn(PANELS[name], asked)
    rows = [count for of, count in read if of in ("steps", "loop_end")]
    assert rows and set(rows) == {1}
    held.close()


def test_a_page_leaves_the_machine_to_the_training_it_follows(client, tmp_path, training, monkeypatch):
    pretended = training(tmp_path / "live.h5", steps=100)
    pretended.step(0)
    pretended.writer.flush()
    served = client(tmp_path)
    one = run_id(served, "live")
    state = {"run-id.data": one, "version.data": "old"}
    served.fire("version.data", state)
    held = served.index.open(served.index.find(one))
    for took, pace in (({"loss": 0.001}, 1000), ({"loss": 0.2, "gain": 0.1}, 3000), ({"loss": 60.0}, 5000)):
        monkeypatch.setattr(held, "_took", took)
        monkeypatch.setattr(held, "_took_before", 60.0)  # it was not once that drawing took long
        assert served.fire("version.data", state)["run-poll"]["interval"] == pace


def test_run_that_vanishes_stops_polling_with_a_reason(client, runs):
    served = client(runs)
    one = run_id(served, "addition")
    shown(served, "addition")
    (runs / "addition.h5").unlink()
    gone = served.fire("version.data", {"run-id.data": one, "version.data": "old"})
    assert gone["run-poll"]["disabled"] is True and "cannot be read any more" in json.dumps(gone["verdict"])


def test_long_run_is_sent_in_bounded_size_and_judged_behind_its_page(client, tmp_path, write_run):
    write_run(tmp_path / "long.h5", steps=20_500, end=1.3)
    served = client(tmp_path)
    page = shown(served, "long")
    assert "reading…" in words(find(page, "verdict")) and find(page, "run-poll")["disabled"] is False
    for tab in all_tabs().values():
        for one in tab.panels:
            held = served.index.open(served.index.find(run_id(served, "long")))
            assert len(drawn(PANELS[one], Ask(held, batch="training")).to_json()) < 300_000, one
    for _ in range(600):
        judged = served.fire("version.data", {"run-id.data": run_id(served, "long"), "version.data": ""})
        if "reading…" not in words(judged["verdict"]):
            break
        time.sleep(0.1)
    assert "Unstable since" in words(judged["verdict"]) and judged["run-poll"]["disabled"] is True


def test_very_many_arrays_are_sent_in_bounded_size_and_only_new_ones_are_read(tmp_path, monkeypatch):
    count = 5_000  # of each of two names
    with RunWriter.create(tmp_path / "many.h5", info={}) as writer:
        for step in range(count):
            writer.append_array(step, "block_state_norm", np.ones(12, np.float32))
            writer.append_array(step, "state_gradient_norm", np.full(9, step + 1, np.float32))
        writer.append_step({"step": count, "loss": 2.0})
        assert writer.flush()
        held = OpenRun(tmp_path / "many.h5")
        sizes = [len(drawn(PANELS[one], Ask(held)).to_json()) for one in ("blocks", "heat-gradient")]
        writer.append_array(count, "block_state_norm", np.ones(12, np.float32))
        assert writer.flush()
        read = []
        values = RecordedArrays._values
        monkeypatch.setattr(RecordedArrays, "_values", lambda own, rows: read.append(len(rows)) or values(own, rows))
        held.refresh()
        drawn(PANELS["blocks"], Ask(held))
        held.close()
    assert max(sizes) < 300_000 and [rows for rows in read if rows] == [1]


def test_a_csv_holds_every_step_and_no_formula(client, runs):
    served = client(runs)
    one = run_id(served, "concatenation")
    answer = served.get(f"/csv/{one}/loss")
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert answer.mimetype == "text/csv" and [int(float(row["step"])) for row in rows] == list(range(200))
    part = list(csv.reader(io.StringIO(served.get(f"/csv/{one}/heat-state?batch=training&from=50&to=52").text)))
    assert len(part) == 1 + 5 and part[0][:2] == ["step", "state_norm_0"]
    assert served.get("/csv/nonsense/loss").status_code == served.get(f"/csv/{one}/nonsense").status_code == 404
    assert served.get(f"/csv/{run_id(served, 'foreign')}/loss").status_code == 409


def test_every_panel_can_be_taken_along(tmp_path, write_run):
    held = OpenRun(write_run(tmp_path / "s.h5", end=1.4, study=True))
    for one in PANELS.values():
        columns = table(one, Ask(held))
        assert len({len(values) for values in columns.values()}) <= 1, one.name
    held.close()


def test_alive_says_how_long_a_live_run_has_been_silent(client, tmp_path, training, runs):
    pretended = training(tmp_path / "live.h5", steps=9)
    pretended.step(0)
    pretended.writer.flush()
    served = client(tmp_path)
    said = served.get(f"/alive?run={run_id(served, 'live')}").get_json()
    assert said["state"] == "live" and 0 <= said["age"] < 60
    for other in ("/alive", "/alive?run=nonsense", f"/alive?run={run_id(served, 'foreign')}"):
        assert served.get(other).get_json() == {}


# -- the table of runs -------------------------------------------------------------------------------------------------


def grid_rows(client) -> dict[str, dict]:
    page = client.page("/")["_pages_content"]["children"]
    return {row["name"]: row for row in find(page, "runs")["rowData"]}


def filled(client) -> dict[str, dict]:
    """The rows once the thread has read all of them."""
    until = time.monotonic() + 60
    while True:
        rows = grid_rows(client)
        if all(row["state"] != "reading" for row in rows.values()):
            return rows
        assert time.monotonic() < until
        time.sleep(0.05)


def test_rows_come_at_once_and_are_filled_in(client, runs):
    served = client(runs)
    first = grid_rows(served)
    assert len(first) == 5
    table = filled(served)
    assert table["concatenation"]["verdict"] == "unstable" and table["addition"]["verdict"] == "marginal"
    first = table["concatenation"]
    assert first["gate"] == "fail" and first["alert"].endswith(f" at step {first['alert_step']}")
    row = table["parcae/seed0"]
    assert (row["steps"], row["state"], row["alert"], row["agree"]) == (200, "finished", None, True)
    assert row["radius"] == pytest.approx(0.45 + 0.35 * 199 / 200)  # ρ as the fixture wrote it, float64 all the way
    assert 2 <= len(row["spark"]) <= 60
    assert table["foreign"]["state"] == "unreadable" and "not an HDF5 file" in table["foreign"]["fault"]
    assert table["no rows"]["steps"] == 0 and "no step was recorded" in table["no rows"]["fault"]
    order = sorted(table.values(), key=lambda one: one["attention"])
    assert [one["name"] for one in order][:2] == ["concatenation", "addition"] and order[-1]["name"] == "foreign"


def test_the_poll_of_the_table_sends_the_rows_that_changed_only(client, runs, write_run):
    served = client(runs)
    filled(served)
    page = served.page("/")["_pages_content"]["children"]
    serial = find(page, "runs-serial")["data"]
    same = served.fire("runs-change.data", {"runs-poll-tick.data": 1, "runs-serial.data": serial})
    assert same.keys() == {"runs-poll", "runs-poll-rows"}  # answered: the next question may come
    write_run(runs / "late.h5", steps=5)
    gone = run_id(served, "addition")
    (runs / "addition.h5").unlink()
    change = served.fire("runs-change.data", {"runs-serial.data": serial})["runs-change"]["data"]
    assert {row["name"] for row in change["rows"]} == {"late"} and change["gone"] == [gone]


def test_rows_are_kept_over_a_restart_and_read_again_when_the_file_changed(client, runs, write_run, monkeypatch):
    served = client(runs)
    before = filled(served)
    from loopscope.dashboard.pages.runs import TABLE_KEY

    served.app.server.config[TABLE_KEY]._save()
    write_run(runs / "other.h5", steps=7)
    (runs / "other.h5").replace(runs / "addition.h5")
    again = client(runs)
    monkeypatch.setattr(OpenRun, "story", lambda *_, **__: pytest.fail("a run nobody wrote was judged again"))
    first = grid_rows(again)
    assert first["concatenation"] == before["concatenation"] and first["parcae/seed0"] == before["parcae/seed0"]
    assert first["addition"]["state"] == "reading"


@pytest.mark.parametrize("left", [b"", b"{", b"[]", b'{"version": 7}', b'{"version": "1", "rows": {"x": 3}}', b"\xff"])
def test_a_cache_that_is_not_ours_is_passed_over(client, runs, monkeypatch, tmp_path_factory, left):
    home = tmp_path_factory.mktemp("odd")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    (home / "loopscope").mkdir()
    (home / "loopscope" / "rows.json").write_bytes(left)
    assert len(grid_rows(client(runs))) == 5


def test_losses_that_are_not_finite_do_not_break_the_table(client, tmp_path):
    with RunWriter.create(tmp_path / "nan.h5", info={}) as writer:
        for step, loss in enumerate((3.0, float("nan"), float("inf"))):
            writer.append_step({"step": step, "loss": loss, "nonfinite": float(step > 0)})
    assert filled(client(tmp_path))["nan"]["loss"] == "inf"


def test_a_file_that_is_written_over_in_place_is_a_sentence_and_then_the_other_run(client, tmp_path, write_run):
    write_run(tmp_path / "a.h5", steps=30)
    other = write_run(tmp_path / "elsewhere" / "b.h5", steps=20).read_bytes()
    served = client(tmp_path / "a.h5")
    one = served.index.entries()[0].id
    assert "30 steps" in str(served.page(f"/run/{one}"))
    (tmp_path / "a.h5").write_bytes(other)  # as `cp` does: the same file with other content
    said = [str(served.page(f"/run/{one}")) for _ in range(2)]
    assert (
        all("20 steps" in page or "cannot be" in page for page in said)
        and served.get(f"/alive?run={one}").status_code == 200
    )


def test_what_has_nothing_to_draw_is_one_line_that_says_what_would_fill_it(client, runs):
    served = client(runs)
    page = words(shown(served, "no rows", "?tab=where"))
    for name in all_tabs()["where"].panels:
        card = find(shown(served, "no rows", "?tab=where"), f"panel-{name}")
        assert card["className"].endswith(" ls-empty") and "recorded" in words(card["children"][1]), name
    assert page.count("ls-empty") == len(all_tabs()["where"].panels)
    card = find(shown(served, "concatenation", "?tab=where"), "panel-profile")
    assert "ls-empty" not in card["className"] and card["children"][1]["props"]["children"] == ""


def test_the_parts_of_the_risk_are_on_the_page(client):
    body = words(find(shown(client(example_runs()), "concatenation-sandwich-lr0.05"), "tab-words"))
    held = OpenRun(example_runs() / "concatenation-sandwich-lr0.05.h5")
    risk = held.story().risk
    held.close()
    assert risk.parts and "What the risk is made of" in body
    for part in risk.parts:
        assert part.said in body and f"{part.share:.0%}" in body


def test_the_verdict_is_a_live_region_that_holds_nothing_which_changes_by_the_second(client, runs):
    strip = find(shown(client(runs), "concatenation"), "verdict")
    said = [one["props"] for one in every(strip) if one["props"].get("role") == "status"]
    assert len(said) == 1 and "Unstable since" in words(said[0]) and "steps/s" not in words(said[0])
    glyph = next(one for one in every(strip) if one["type"] == "I")  # a second sign beside the colour
    assert glyph["props"]["children"] == "▲"
