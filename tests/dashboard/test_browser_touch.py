"""Runs, Map and Compare by a finger, on a phone: swiping scrolls, tapping does what a click does.

What a finger does on the page of a run is in test_browser_everywhere.py.
"""

import re

from .test_browser import PATIENCE, chromium, pytestmark, screen, sync_api  # noqa: F401  (fixtures)


def swipe(page, x: float, y: float, up: float) -> None:
    """Move a finger upwards from a place in small steps, as a hand does, and wait until what it scrolls is at rest."""
    page.evaluate("window.rests = false; document.addEventListener('scrollend', () => (window.rests = true), true)")
    touch = page.context.new_cdp_session(page)
    touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
    for moved in range(15, int(up), 15):
        touch.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [{"x": x, "y": y - moved}]})
        page.wait_for_timeout(20)
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    page.wait_for_function("window.rests")  # a tap on a page that glides only halts it


def test_runs_by_touch(screen, runs):  # noqa: F811
    shown = screen(runs, width=390, touch=True)
    page = shown.open()
    sync_api.expect(page.locator(".ag-row[row-index='0']")).to_contain_text("concatenation", timeout=PATIENCE)
    unstable = page.locator("[data-filter='verdict:unstable']")
    unstable.tap()
    sync_api.expect(page.locator(".ag-row")).to_have_count(1)
    unstable.tap()
    sync_api.expect(page.locator(".ag-row")).to_have_count(5)
    page.locator(".ag-row[row-index='0'] .ag-checkbox-input").tap()
    sync_api.expect(page.locator("[data-counts=ticked]")).to_have_text(" (1)")
    page.locator(".ag-row[row-index='0'] .ag-cell[col-id='verdict'] .ls-badge").tap()
    sync_api.expect(page.locator("#ls-tip")).to_contain_text("Unstable since step")
    page.set_viewport_size({"width": 390, "height": 420})  # too low for all rows: the table scrolls, or the page
    box = page.locator(".ag-row[row-index='1']").bounding_box()
    places = "[window.scrollY, document.querySelector('.ag-body-viewport').scrollTop]"
    before = page.evaluate(places)
    swipe(page, box["x"] + 200, box["y"] + 20, up=150)
    page.wait_for_function(f"{places}.some((now, i) => now > {before}[i] + 20)")
    page.set_viewport_size({"width": 390, "height": 900})
    page.locator("a.ls-run", has_text="concatenation").tap()
    page.wait_for_url(re.compile("/run/concatenation"))


def test_map_by_touch(screen, runs):  # noqa: F811
    shown = screen(runs, width=390, touch=True)
    page = shown.open("/map?x=last.loss&y=last.a_bar_radius")
    sync_api.expect(page.locator("#map-table")).to_contain_text("concatenation", timeout=PATIENCE)
    shown.drawn()
    box = page.locator("#map .nsewdrag").bounding_box()
    swipe(page, box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, up=200)
    page.wait_for_function("window.scrollY > 60")
    assert "in the box" not in page.locator("#map-table").inner_text()  # it was no box
    page.evaluate("window.scrollTo(0, 0)")
    page.wait_for_function("window.scrollY === 0")
    mark = page.evaluate(
        """() => { const plot = document.querySelector('#map .js-plotly-plot');
        const at = plot.data.findIndex((one) => one.name === 'unstable');
        const point = plot.querySelectorAll('.scatterlayer .trace')[at].querySelector('.point').getBoundingClientRect();
        return [point.x + point.width / 2, point.y + point.height / 2]; }"""
    )
    page.touchscreen.tap(*mark)
    page.wait_for_url(re.compile("/run/concatenation"))


def test_compare_by_touch(screen, runs):  # noqa: F811
    shown = screen(runs, width=390, touch=True)
    chosen = [one for one in shown.ids() if one.startswith(("concatenation", "addition"))]
    page = shown.open(f"/compare?runs={','.join(chosen)}")
    page.wait_for_selector("#compare-body .main-svg")
    shown.drawn()
    box = page.locator("#compare-body .nsewdrag").first.bounding_box()
    swipe(page, box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, up=200)
    page.wait_for_function("window.scrollY > 60")
    page.evaluate("window.scrollTo(0, 0)")
    page.locator("#compare-by label", has_text="first breach").tap()
    page.wait_for_url(re.compile("by=breach"))
    left_out = page.locator("#compare-body .ls-readout").first
    sync_api.expect(left_out).to_contain_text("without a breach: addition")
    sync_api.expect(left_out).to_be_visible()
    shown.drawn()
    place = page.evaluate(
        """() => { const plot = document.querySelector('#compare-body .js-plotly-plot');
        const { x, y } = plot.calcdata[0][60];
        const { xaxis, yaxis } = plot._fullLayout, box = plot.querySelector('.nsewdrag').getBoundingClientRect();
        return [box.x + xaxis.c2p(x), box.y + yaxis.c2p(y)]; }"""
    )
    page.touchscreen.tap(*place)
    sync_api.expect(
        page.locator("#compare-body .hoverlayer .hovertext, #compare-body .hoverlayer .legend").first
    ).to_be_visible()
    assert shown.overflow() == 0
