"""The pages beside Runs and Run in a real browser: content, one interaction, a silent console, no request elsewhere."""

import re
from pathlib import Path

import pytest

from .test_browser import PATIENCE, chromium, pytestmark, screen  # noqa: F401  (fixtures)

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


def test_explorer_presets_change_the_verdict_and_the_address_keeps_the_settings(screen, tmp_path):  # noqa: F811
    shown = screen(tmp_path)
    page = shown.open("/explorer")
    shown.drawn()
    verdict = page.locator("#explorer-verdict")
    sync_api.expect(verdict).to_contain_text("Stable")
    page.get_by_role("button", name="Concatenation, hot").click()
    sync_api.expect(verdict).to_contain_text("Unstable", timeout=PATIENCE)
    page.wait_for_url(re.compile("kind=concatenation.*norm=3"))
    page.reload()
    sync_api.expect(verdict).to_contain_text("Unstable", timeout=PATIENCE)
    page.get_by_text("matrix", exact=True).click()
    page.locator("#explorer-matrix").fill("2 0; 0")
    sync_api.expect(verdict).to_contain_text("square", timeout=PATIENCE)
    assert shown.overflow() == 0


def test_map_places_runs_and_a_click_opens_one(screen, runs):  # noqa: F811
    shown = screen(runs)
    page = shown.open("/map?x=last.loss&y=last.a_bar_radius")
    sync_api.expect(page.locator("#map-table")).to_contain_text("3 of 5 runs", timeout=PATIENCE)
    page.wait_for_function("document.querySelectorAll('#map .points path').length === 3")
    for _ in range(5):  # where a run has just been read, the mark moves away from the mouse
        box = page.locator("#map .points path").first.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(x - 40, y - 4)
        page.mouse.move(x, y, steps=8)
        page.mouse.click(x, y)
        page.wait_for_timeout(1500)
        if "/run/" in page.url:
            break
    page.wait_for_url(re.compile("/run/"))
    page.wait_for_selector("#verdict")
    assert shown.overflow() == 0


def test_a_box_on_the_map_lists_only_the_runs_in_it(screen, runs):  # noqa: F811
    page = screen(runs).open("/map?x=last.loss&y=last.a_bar_radius")
    rows = page.locator("#map-table tbody tr")
    sync_api.expect(rows).to_have_count(3, timeout=PATIENCE)
    sync_api.expect(page.locator("#map-table")).not_to_contain_text("still being read")  # nothing moves any more
    page.wait_for_function("document.querySelectorAll('#map .points path').length === 3")
    mark = page.locator("#map .points path").last.bounding_box()  # the unstable one: its traces come last
    page.mouse.move(mark["x"] - 60, mark["y"] + 80)
    page.mouse.down()
    page.mouse.move(mark["x"] + 25, mark["y"] - 6, steps=6)
    page.mouse.up()
    sync_api.expect(rows).to_have_count(1, timeout=PATIENCE)
    sync_api.expect(rows.first).to_contain_text("concatenation")
    page.locator("#map-all").click()
    sync_api.expect(rows).to_have_count(3, timeout=PATIENCE)
    assert "/map" in page.url


def test_compare_follows_the_ticks_and_the_axis_chosen(screen, runs):  # noqa: F811
    shown = screen(runs)
    page = shown.open()
    for name in ("addition", "concatenation"):
        page.locator(".ag-row", has_text=name).locator("input[type=checkbox]").check(timeout=PATIENCE)
    page.get_by_role("link", name=re.compile("Compare")).click()
    sync_api.expect(page.locator("#compare-count")).to_contain_text("2 runs", timeout=PATIENCE)
    page.wait_for_selector("#compare-body .main-svg")
    page.get_by_text("first breach", exact=True).click()
    page.wait_for_url(re.compile("by=breach"))
    sync_api.expect(page.locator("#compare-body")).to_contain_text("without a breach: addition", timeout=PATIENCE)
    assert shown.overflow() == 0
    with page.expect_download() as taken:
        page.locator("#compare-report a").click()
    assert "2 runs compared" in Path(taken.value.path()).read_text(encoding="utf-8")
    page.goto(shown.base + "/compare?runs=" + next(one for one in shown.ids() if one.startswith("addition")))
    sync_api.expect(page.locator("#compare-count")).to_contain_text("1 runs", timeout=PATIENCE)


def test_a_table_that_goes_on_has_a_shadow_at_its_edge(screen, study):  # noqa: F811
    shown = screen(study, width=390)
    page = shown.run("study", "?tab=flights")
    table = page.locator(".ls-scroll.ls-wide").first
    sync_api.expect(table.locator("tbody tr").first).to_be_visible(timeout=PATIENCE)
    assert table.evaluate("e => e.scrollWidth > e.clientWidth") and shown.overflow() == 0
    ground = table.evaluate("e => getComputedStyle(e).background")
    assert ground.count("linear-gradient") == 4 and "local" in ground


def test_an_alert_is_whole_on_a_phone(screen, runs):  # noqa: F811
    shown = screen(runs, width=390)
    page = shown.open("/alerts")
    first = page.locator(".ls-alerts tbody tr").first
    sync_api.expect(first).to_be_visible(timeout=PATIENCE)
    assert shown.overflow() == 0 and page.locator(".ls-alerts .ls-scroll").evaluate(
        "e => e.scrollWidth <= e.clientWidth"
    )
    for cell in first.locator("th, td").all():
        box = cell.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390


def test_an_alert_is_acknowledged_and_leads_to_its_step(screen, runs):  # noqa: F811
    shown = screen(runs)
    page = shown.open("/alerts")
    rows = page.locator(".ls-alerts tbody tr", has_text="concatenation")
    sync_api.expect(rows.first).to_be_visible(timeout=PATIENCE)
    before = rows.count()
    rows.first.get_by_role("button").click()
    sync_api.expect(rows).to_have_count(before - 1, timeout=PATIENCE)
    assert (runs / "loopscope-acknowledged.json").exists()
    rows.first.get_by_role("link", name=re.compile("LS")).click()
    page.wait_for_url(re.compile(r"/rules/LS\d+"))
    page.wait_for_selector(".ls-rule h1, .ls-rule h2, .ls-rule h3")
    page.go_back()
    page.wait_for_selector(".ls-alerts")
    rows.first.get_by_role("link", name="concatenation").click()
    page.wait_for_url(re.compile(r"/run/concatenation-\w+\?step=\d+"))


def test_a_bar_of_a_run_goes_into_the_explorer_and_the_way_back_leads_to_its_step(screen, runs):  # noqa: F811
    shown = screen(runs)
    page = shown.run("concatenation", "?tab=spectrum&step=120")
    page.get_by_role("link", name="open A̅ in the explorer, with its pseudospectra").click()
    page.wait_for_url(re.compile("/explorer.*kind=run"))
    verdict = page.locator("#explorer-verdict")
    sync_api.expect(verdict).to_contain_text("stands for it", timeout=PATIENCE)
    sync_api.expect(page.get_by_role("checkbox", name=re.compile("pseudospectra"))).to_be_checked()
    page.wait_for_selector("#explorer-spectrum .contour")
    page.wait_for_url(re.compile("contours=on"))
    page.get_by_role("link", name="back to the run at this step").click()
    page.wait_for_url(re.compile("tab=spectrum&step=120"))
    page.wait_for_selector("#panel-spectrum .main-svg")


def test_what_was_chosen_on_a_page_is_there_again_after_going_back(screen, runs):  # noqa: F811
    shown = screen(runs)
    page = shown.open("/alerts")
    page.locator("#alerts-show").get_by_text("notes", exact=True).click()
    page.wait_for_url(re.compile("show=.*note"))
    page.locator(".ls-alerts tbody tr").first.get_by_role("link").last.click()
    page.wait_for_url(re.compile(r"/run/.*step="))
    page.wait_for_selector("#verdict")
    page.go_back()
    sync_api.expect(page.locator("#alerts-show input").nth(2)).to_be_checked(timeout=PATIENCE)
    page.goto(shown.base + "/map?x=last.loss&y=largest.a_bar_radius")
    page.locator("#map-table a").first.click()
    page.wait_for_selector("#verdict")
    page.go_back()
    sync_api.expect(page.locator("#map-table thead")).to_contain_text("a_bar_radius, largest", timeout=PATIENCE)


def test_map_alerts_and_compare_follow_a_live_run(screen, tmp_path, elsewhere):  # noqa: F811
    training = elsewhere(tmp_path / "live.h5")
    training.tell("60")
    shown = screen(tmp_path)
    page = shown.open(f"/compare?runs={shown.ids()[0]}&what=loss")
    points = "(document.querySelector('#compare-body .js-plotly-plot')?.data?.[0]?.x ?? []).length"
    page.wait_for_function(f"({points} || 0) > 0 || document.querySelector('#compare-body .js-plotly-plot')")
    last = "Number(document.querySelector('#compare-body .js-plotly-plot')._fullLayout.xaxis.range[1])"
    page.wait_for_function(f"{last} < 80")
    training.tell("120")
    page.wait_for_function(f"{last} > 100")
    page.get_by_role("link", name="Map").click()
    page.locator("#map-table tbody tr").wait_for()
    page.goto(shown.base + "/map?x=last.loss&y=last.a_bar_radius")
    radius = page.locator("#map-table tbody td").last
    before = float(radius.inner_text(timeout=PATIENCE))
    training.tell("390")  # beyond the edge
    page.wait_for_function(
        f"Number(document.querySelector('#map-table tbody td:last-child').textContent) > {before + 0.1}"
    )
    page.get_by_role("link", name="Alerts").click()
    sync_api.expect(page.locator("#alerts-body")).to_contain_text(re.compile("LS0[123]0"), timeout=PATIENCE)


def test_a_choice_from_a_list_is_made_with_the_keyboard_alone(screen, runs):  # noqa: F811
    page = screen(runs).open("/map?x=last.loss&y=last.a_bar_radius")
    sync_api.expect(page.locator("#map-table tbody tr")).to_have_count(3, timeout=PATIENCE)
    assert "x=last.loss" in page.url  # the address holds, although no run had been read when the page came
    page.wait_for_selector("#map-y[tabindex='0']")
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id === 'map-y'"):
            break
    page.keyboard.press("Enter")
    option = "document.activeElement.closest('label.dash-options-list-option') && document.activeElement.value"
    page.wait_for_function(f"{option} === 'last.a_bar_radius'")  # the list takes the focus a moment after it opens
    page.keyboard.press("ArrowDown")
    page.wait_for_function(f"({option} || 'last.a_bar_radius') !== 'last.a_bar_radius'")
    page.keyboard.press("Space")
    page.wait_for_url(re.compile(r"y=(?!last\.a_bar_radius$)"))


def test_the_reason_of_a_file_that_is_no_run_has_the_whole_row(screen, tmp_path):  # noqa: F811
    (tmp_path / "damaged.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(4000))
    (tmp_path / "foreign.h5").write_bytes(b"not HDF5 at all")
    page = screen(tmp_path).open()
    for name in ("damaged", "foreign"):
        row = page.locator(".ag-row", has_text=name)
        sync_api.expect(row.locator(".ag-cell[col-id='verdict'] .ls-fault")).to_be_visible(timeout=PATIENCE)
        sync_api.expect(row.locator(".ag-cell[col-id='name']")).to_have_count(0)
