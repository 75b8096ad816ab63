"""Which variable of a loop fails, for somebody who opens the page first: on every page, and by one click."""

import re

import pytest

from .test_browser import PATIENCE, chromium, pytestmark, screen, sync_api  # noqa: F401  (fixtures)
from .two_variables import write_two

FAILS = [("z_L", "explodes", "LS030"), ("z_H", "explodes", "LS030"), ("z_L", "nan", "LS001")]


@pytest.mark.parametrize(("name", "how", "rule"), FAILS)
def test_the_first_screen_says_which_variable_fails_since_when_and_by_which_rule(screen, tmp_path, name, how, rule):  # noqa: F811
    write_two(tmp_path / "sick.h5", name, how)
    write_two(tmp_path / "sound.h5")
    other = {"z_L": "z_H", "z_H": "z_L"}[name]
    does = "is not finite" if how == "nan" else "explodes"
    shown = screen(tmp_path)
    page = shown.open()
    cell = page.locator(".ag-row[row-index='0'] .ag-cell[col-id='variable']")  # the worst run on top
    sync_api.expect(cell).to_have_text(re.compile(rf"▲ {name} {does}.*since step 40 · {rule}", re.S), timeout=PATIENCE)
    sync_api.expect(page.locator(".ag-row[row-index='1'] .ag-cell[col-id='variable']")).to_have_text("–")
    page.locator("a.ls-run", has_text="sick").click()
    strip = page.locator("#verdict")
    sync_api.expect(strip).to_contain_text(f"{name} fails, {other} does not", timeout=PATIENCE)
    sync_api.expect(strip).to_contain_text(re.compile(rf"{name} fails: it {does} since step 40 .*{rule}"))
    box = strip.bounding_box()
    assert box["y"] + box["height"] <= 900 and strip.evaluate("e => e.scrollHeight <= e.clientHeight")  # nothing is cut
    strip.get_by_role("link", name=name, exact=True).click()
    page.wait_for_url(re.compile(rf"tab=where&batch=variable(:|%3A){name}&step=40"))
    shown.expect("heat-state", f"{name}, training steps")
    picker = page.locator(".mantine-SegmentedControl-root")
    sync_api.expect(picker).to_contain_text(f"▲ {name}")
    assert f"▲ {other}" not in picker.inner_text()
    assert page.locator(".mantine-SegmentedControl-root input:checked").input_value() == f"variable:{name}"


def test_map_alerts_and_compare_name_the_variable_that_fails(screen, tmp_path):  # noqa: F811
    write_two(tmp_path / "sick.h5", "z_L")
    write_two(tmp_path / "sound.h5")
    shown = screen(tmp_path)
    page = shown.open("/map")
    sync_api.expect(page.locator("#map-table")).to_contain_text("z_L explodes since step 40", timeout=PATIENCE)
    shown.drawn()
    hover = "document.querySelector('#map .js-plotly-plot').data.map((one) => one.text).flat().join(' ')"
    assert "▲ z_L explodes since step 40" in page.evaluate(hover)
    page = shown.open("/alerts")
    sync_api.expect(page.locator("#alerts-body tr", has_text="LS030").first).to_contain_text("z_L: ", timeout=PATIENCE)
    page = shown.open(f"/compare?runs={','.join(shown.ids())}")
    link = page.get_by_role("link", name="z_L explodes since step 40 · LS030")
    sync_api.expect(link).to_be_visible(timeout=PATIENCE)
    link.click()
    page.wait_for_url(re.compile("batch=variable(:|%3A)z_L"))


def test_a_phone_says_it_too_and_shows_rate_and_loss(screen, tmp_path):  # noqa: F811
    write_two(tmp_path / "sick.h5", "z_L")
    write_two(tmp_path / "sound.h5")
    shown = screen(tmp_path, width=390, touch=True)
    page = shown.open()
    first = page.locator(".ag-row[row-index='0'] .ls-runname")
    sync_api.expect(first).to_contain_text("z_L explodes since step 40", timeout=PATIENCE)
    for row in page.locator(".ag-row .ls-runname").all():
        assert re.search(r"lr 0.01 · loss [23]\.", row.inner_text())
        assert row.evaluate("e => e.scrollHeight <= e.closest('.ag-row').clientHeight")  # no line of it is cut off
    assert shown.overflow() == 0
    page.locator("a.ls-run", has_text="sick").tap()
    sync_api.expect(page.locator("#verdict")).to_contain_text("z_L fails, z_H does not", timeout=PATIENCE)
    page.locator("#verdict .ls-term", has_text="explodes").tap()
    sync_api.expect(page.locator("#ls-tip")).to_contain_text("Its steps grow from loop to loop")
