"""Every page and tab on a phone in both themes: nothing sticks out, axe finds nothing, plots say what they show.

One server and one browser tab for all of it, over the runs that ship with loopscope.
"""

from collections.abc import Iterator

import pytest
from loopscope.dashboard.example import example_runs
from loopscope.dashboard.tabs import all_tabs

from .serving import Served
from .test_browser import PATIENCE, Screen, chromium, pytestmark, sync_api  # noqa: F401  (fixtures)

axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")

RUN = "concatenation-lr0.05"
TABS = {f"run {tab}": f"/run/{{{RUN}}}?tab={tab}&step=150" for tab in all_tabs()}
PLACES = {
    "runs": "/",
    "map": "/map",
    "compare": f"/compare?runs={{{RUN}}},{{parcae-lr0.05}}",
    "nothing to compare": "/compare",
    "alerts": "/alerts?show=error,warning,note",
    "explorer": "/explorer?kind=concatenation&contours=on&gain=0.4",
    "explorer of a run": f"/explorer?kind=run&run={{{RUN}}}&at=150",
    "rule": "/rules/LS020",
    "no such page": "/nowhere",
    **TABS,
}


# What can be clicked and not be focused. Cells of the grid are reached by its arrow keys; what a click on a plot does,
# a field or a link beside it does too.
OUT_OF_REACH = """[...document.querySelectorAll('a[href], button, summary, select, input')]
    .filter((e) => e.offsetParent && e.tabIndex < 0 && !e.closest('.ag-root, .js-plotly-plot, [aria-hidden=true]'))
    .map((e) => e.outerHTML.slice(0, 120))"""


@pytest.fixture(scope="module")
def phone(chromium, tmp_path_factory) -> Iterator[Screen]:  # noqa: F811
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    served = Served(example_runs())
    shown = Screen(chromium, served.base, served.index, width=390, scheme="light", touch=True)
    yield shown
    shown.context.close()
    served.stop()
    patch.undo()


def address(shown: Screen, place: str) -> str:
    """The address of a place, with the ids of runs in it."""
    text = PLACES[place]
    for entry in shown.index.entries():
        text = text.replace(f"{{{entry.name}}}", entry.id)
    return text


# What Dash's own controls say of themselves is mended, and a table that is wider than its place can be reached.
MENDED = """!document.querySelector('label.dash-options-list-option[role], .dash-options-list[role=listbox], '
    + "input[aria-hidden=true]:not([tabindex='-1']), button.dash-dropdown[tabindex='-1'], "
    + '.ls-preset:not([aria-pressed]), .ls-control [role=slider]:not([aria-label])')
    && [...document.querySelectorAll('.ls-scroll')].every((e) => e.scrollWidth <= e.clientWidth || e.tabIndex === 0)"""


def settled(shown: Screen, where: str) -> None:
    """Open a place and wait until all of it is there."""
    page = shown.page
    page.goto(shown.base + where)
    page.wait_for_selector("main h1, main .ls-card")
    shown.drawn()
    page.wait_for_function("!document.querySelector('main').innerText.includes('reading…')", timeout=3 * PATIENCE)
    page.wait_for_function(MENDED)
    page.wait_for_function(
        "[...document.querySelectorAll('.js-plotly-plot')].every(g => g.getAttribute('aria-label') !== null)"
    )


def violations(page) -> list[str]:
    """What axe finds, one line each."""
    found = axe.Axe().run(
        page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
    )
    return [
        f"{one['id']}: {one['help']}: {node['target']}" for one in found.response["violations"] for node in one["nodes"]
    ]


@pytest.mark.parametrize("place", PLACES)
def test_it_fits_a_phone_is_clean_for_axe_in_both_themes_and_says_what_its_plots_show(phone, place):
    phone.faults.clear()
    settled(phone, address(phone, place))
    page = phone.page
    faults = []
    if place in TABS:  # the address alone leads to the tab and the step
        chosen = page.locator("[role=tab][aria-selected=true]").get_attribute("id")
        faults += [] if place.removeprefix("run ") in chosen else [f"{chosen} is open"]
        faults += [] if page.locator("#step-input").input_value() == "150" else ["the step is not that of the address"]
    faults += [f"not reached by keyboard: {one}" for one in page.evaluate(OUT_OF_REACH)]
    for _ in range(2):
        theme = page.locator("html").get_attribute("data-mantine-color-scheme")
        faults += [f"{theme}: {fault}" for fault in violations(page)]
        if phone.overflow():
            faults.append(f"{theme}: {phone.overflow()} pixels wider than the window")
        page.locator("#scheme").click()
        page.wait_for_function(f"document.documentElement.dataset.mantineColorScheme !== '{theme}'")
    for plot in page.locator(".js-plotly-plot").all():
        label = plot.get_attribute("aria-label") or ""
        faults += [] if len(label) > 20 and "<" not in label else [f"a plot says {label!r}"]
    assert faults + phone.faults == []


def test_a_finger_on_a_plot_scrolls_the_page_and_a_tap_chooses_the_step(phone):
    settled(phone, address(phone, "run when"))
    page = phone.page
    box = page.locator("#panel-loss .nsewdrag").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.evaluate("document.addEventListener('scrollend', () => window.rests = true)")
    touch = page.context.new_cdp_session(page)
    touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
    for moved in range(15, 200, 15):
        touch.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [{"x": x, "y": y - moved}]})
        page.wait_for_timeout(20)
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    page.wait_for_function("window.rests && window.scrollY > 60")  # a tap on a page that glides only halts it
    range_of = "document.querySelector('#panel-loss .js-plotly-plot')._fullLayout.xaxis.range[1]"
    assert page.evaluate(range_of) > 199  # it was no zoom
    box = page.locator("#panel-gain .nsewdrag").first.bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] * 0.25, box["y"] + box["height"] / 2)
    page.wait_for_function("Number(new URL(location).searchParams.get('step')) < 80")


def test_everything_of_a_failure_can_be_read_with_the_keyboard_alone(phone):
    settled(phone, "/")
    page = phone.page

    def press(until: str, key: str = "Tab", most: int = 60) -> None:
        for _ in range(most):
            page.keyboard.press(key)
            if page.evaluate(until):
                return
        raise AssertionError(f"{until} not reached by {most} times {key}")

    press("document.activeElement.classList.contains('ls-skip')")
    page.keyboard.press("Enter")
    press("document.activeElement.id === 'query'")
    page.keyboard.type("concatenation-lr0.05")
    sync_api.expect(page.locator("a.ls-run")).to_have_count(1)
    press("document.activeElement.closest('.ag-header-cell, .ag-cell') !== null")
    press("document.activeElement.closest('.ag-row') !== null", "ArrowDown")
    press("document.activeElement.getAttribute('col-id') === 'name'", "ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_selector("#verdict")
    said = page.locator("#verdict [role=status]")  # a screen reader says it again when it changes
    assert "Unstable since step" in said.inner_text() and "steps/s" not in said.inner_text()
    press("document.activeElement.getAttribute('role') === 'tab'")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_selector("#panel-heat-state .main-svg")
