"""The dashboard in a real browser: what is on the screen, what the console says, and where requests go."""

import re
import shutil
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from loopscope.dashboard import summary
from loopscope.dashboard.pages import run as run_page
from loopscope.runfile.writer import RunWriter

from .serving import Served

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next((path for path in map(shutil.which, NAMES) if path), None)
# No sandbox: tests run as root in containers. The rest keeps the browser itself from talking to its maker.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 20_000  # ms; a page takes about one second on an idle machine, the machine may be busy
sync_api.expect.set_options(timeout=PATIENCE)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on this machine (apt install chromium)"),
]


@pytest.fixture(scope="module")
def chromium() -> Iterator["sync_api.Browser"]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield browser
        browser.close()


class Screen:
    """One browser tab that remembers everything it should not have said or asked."""

    def __init__(
        self, browser: "sync_api.Browser", base: str, index, *, width: int = 1280, scheme: str = "light",
        touch: bool = False,
    ) -> None:  # fmt: skip
        self.base, self.index, self.faults = base, index, []
        size = {"width": width, "height": 900}
        self.context = browser.new_context(viewport=size, color_scheme=scheme, has_touch=touch)
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.page.on("console", lambda m: m.type in ("error", "warning") and self.faults.append(f"console: {m.text}"))
        self.page.on("pageerror", lambda error: self.faults.append(f"page error: {error}"))
        self.page.on("requestfailed", lambda r: "ERR_ABORTED" in r.failure or self.faults.append(f"failed: {r.url}"))
        self.page.on("request", self._request)

    def _request(self, request: "sync_api.Request") -> None:
        if not request.url.startswith((self.base + "/", "data:", "blob:" + self.base)):
            self.faults.append(f"request to {request.url}")

    def open(self, address: str = "/") -> "sync_api.Page":
        self.page.goto(self.base + address)
        self.page.wait_for_selector(".ls-title")
        return self.page

    def run(self, name: str, query: str = "") -> "sync_api.Page":
        """Open the page of a run, by its name."""
        identifier = next(one for one in self.ids() if one.startswith(name))
        self.open(f"/run/{identifier}{query}")
        self.drawn()
        return self.page

    def ids(self) -> list[str]:
        return [entry.id for entry in self.index.entries()]

    def drawn(self) -> None:
        """Wait until every plot of the page is drawn."""
        self.page.wait_for_function(
            "[...document.querySelectorAll('.dash-graph')].every(g => g.querySelector('.main-svg'))"
        )

    def expect(self, panel: str, pattern: str) -> None:
        """Wait for words in a panel."""
        sync_api.expect(self.page.locator(f"#panel-{panel}")).to_contain_text(re.compile(pattern), timeout=PATIENCE)

    def points(self, panel: str) -> str:
        """Script: how many points the first line of a panel has; a long column arrives in binary."""
        x = f"document.querySelector('#panel-{panel} .js-plotly-plot').data[0].x"
        return f"(({x}).length ?? ({x})._inputArray.length)"

    def overflow(self) -> int:
        """By how many pixels the page is wider than the window."""
        return self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


@pytest.fixture
def screen(chromium, serving) -> Iterator:
    opened: list[Screen] = []

    def show(*paths, **settings) -> Screen:
        base, index = serving(*paths)
        opened.append(Screen(chromium, base, index, **settings))
        return opened[-1]

    yield show
    for one in opened:
        one.context.close()
        assert one.faults == []  # every test of this file: a silent console, and no request off this server


STEP = re.compile(r"step=(\d+)")


def test_the_table_fills_in_filters_searches_and_keeps_all_of_it_in_the_address(screen, runs):
    shown = screen(runs)
    page = shown.open()
    sync_api.expect(page.locator(".ag-row")).to_have_count(5, timeout=PATIENCE)
    page.wait_for_selector("[data-filter='verdict:unstable']")
    first = page.locator(".ag-row[row-index='0']")
    sync_api.expect(first).to_contain_text("concatenation", timeout=PATIENCE)  # the worst on top
    assert "not an HDF5 file" in page.locator("#runs").inner_text()
    page.locator("[data-filter='verdict:unstable']").click()
    sync_api.expect(page.locator(".ag-row")).to_have_count(1)
    assert "only=verdict" in page.url
    page.locator("[data-filter='verdict:unstable']").click()
    page.locator("#query").fill("steps>100 verdict:stable")
    sync_api.expect(page.locator(".ag-row")).to_have_count(1)
    page.locator("#query").fill("nonsense>3")
    sync_api.expect(page.locator("#query-fault")).to_contain_text("no field nonsense")
    page.locator("#query").fill("concat")
    page.wait_for_url(re.compile("q=concat"))
    page.reload()
    sync_api.expect(page.locator(".ag-row")).to_have_count(1)
    sync_api.expect(page.locator("#query")).to_have_value("concat")


def test_the_table_says_and_finds_what_passes_the_gate(screen, runs):
    shown = screen(runs)
    page = shown.open()
    page.wait_for_selector("[data-filter='gate:fail']")
    gates = {row["name"]: row.get("gate") for row in summary.rows(shown.index)}
    failing = sorted(name for name, gate in gates.items() if gate == "fail")
    assert 0 < len(failing) < len(gates) and gates["no rows"] == "error"
    for asked, names in (("fail", failing), ("gate:fail", failing), ("gate:error", ["no rows"])):
        page.locator("#query").fill(asked)
        sync_api.expect(page.locator("a.ls-run")).to_have_count(len(names))
        assert sorted(page.locator("a.ls-run").all_inner_texts()) == names
    assert page.locator(".ag-row").inner_text().startswith("○")  # a verdict, and not the reason in its place
    page.locator("#query").fill("gate:pass")
    sync_api.expect(page.locator(".ag-row .ls-badge", has_text="pass").first).to_be_visible()
    assert page.locator(".ag-row .ls-badge", has_text="fail").count() == 0
    page.locator("#query").fill("nowhere")
    sync_api.expect(page.locator("#runs")).to_contain_text("No run matches this search.")


def test_a_name_loses_its_middle_only_where_it_does_not_fit(screen, tmp_path, write_run):
    name = "concatenation-sandwich-lr0.05"
    write_run(tmp_path / f"{name}.h5", steps=5)
    for width, whole in ((1280, True), (390, False)):
        page = screen(tmp_path, width=width).open()
        link = page.locator(".ls-fitted a.ls-run")
        sync_api.expect(link).to_have_text(name, timeout=PATIENCE)
        head, tail = link.locator("span").first, link.locator("span").last
        assert (head.evaluate("e => e.scrollWidth <= e.clientWidth")) is whole
        assert tail.evaluate(
            "e => e.getBoundingClientRect().right <= e.closest('.ag-cell').getBoundingClientRect().right"
        )


def test_an_empty_plot_is_one_line_until_there_is_something_to_draw(screen, tmp_path, training):
    live = training(tmp_path / "live.h5", steps=100)
    live.writer.flush()
    shown = screen(tmp_path)
    page = shown.run("live")
    panel = page.locator("#panel-loss")
    sync_api.expect(panel).to_contain_text("No loss was recorded.", timeout=PATIENCE)
    assert panel.bounding_box()["height"] < 60 and not panel.locator(".dash-graph").is_visible()
    for step in range(30):
        live.step(step)
    live.writer.flush()
    sync_api.expect(panel.locator(".dash-graph")).to_be_visible(timeout=PATIENCE)
    page.wait_for_function(f"{shown.points('loss')} > 1")
    page.wait_for_function("document.querySelector('#panel-loss .main-svg').clientHeight > 150")
    assert panel.locator(".ls-nothing").inner_text() == ""
    wide = 0.9 * panel.bounding_box()["width"]  # it is drawn at Plotly's own width first, then at the card's
    page.wait_for_function(f"document.querySelector('#panel-loss .main-svg').clientWidth > {wide}")


def test_rows_are_links_and_going_back_restores_the_table(screen, runs):
    shown = screen(runs)
    page = shown.open("/?q=concat")
    again = []
    page.on("request", lambda one: '"type":"panel' in (one.post_data or "") and again.append(one.post_data[:200]))
    page.locator("a.ls-run").first.click()
    page.wait_for_url(re.compile(r"/run/concatenation-[0-9a-f]{8}$"))
    shown.drawn()
    assert "Unstable since step" in page.locator("#verdict").inner_text()
    assert page.title() == "concatenation · loopscope"
    page.go_back()
    sync_api.expect(page.locator(".ag-row")).to_have_count(1, timeout=PATIENCE)
    assert "q=concat" in page.url
    assert again == []  # the plots came with the page: none of them is asked for or drawn twice


def test_the_library_of_plots_comes_ahead_so_that_the_next_page_moves_little(screen, runs):
    shown = screen(runs)
    moved = []
    page = shown.open()
    page.wait_for_function("window.Plotly !== undefined")  # without any plot on the page
    protocol = page.context.new_cdp_session(page)
    protocol.send("Network.enable")
    protocol.on("Network.loadingFinished", lambda event: moved.append(event["encodedDataLength"]))
    page.locator("a.ls-run", has_text="concatenation").click()
    page.wait_for_selector("#panel-events .main-svg")
    assert sum(moved) < 150_000


def test_ticks_are_counted_and_survive_going_to_a_run_and_back(screen, runs):
    shown = screen(runs)
    page = shown.open()
    page.locator(".ag-row", has_text="addition").locator("input[type=checkbox]").check()
    page.wait_for_function("(JSON.parse(sessionStorage.getItem('ticked')) || []).length === 1")
    page.locator("a.ls-run", has_text="addition").click()
    page.wait_for_selector("#verdict")
    page.go_back()
    sync_api.expect(page.locator(".ag-row", has_text="addition").locator("input[type=checkbox]")).to_be_checked(
        timeout=PATIENCE
    )


TICK_AS_ROWS_COME = """async (name) => {
  const api = await window.dash_ag_grid.getApiAsync("runs"), rows = [];
  api.forEachNode((node) => rows.push({ ...node.data }));
  const row = [...document.querySelectorAll(".ag-row")].find((one) => one.innerText.includes(name));
  row.querySelector("input[type=checkbox]").click();
  window.dash_clientside.loopscope.runs_change({ rows, gone: [] });
}"""


def test_a_tick_is_not_lost_where_rows_come_in_at_that_moment(screen, runs):
    shown = screen(runs)
    page = shown.open()
    page.wait_for_selector("[data-filter='verdict:unstable']")  # all are read: no row moves by itself any more
    for many, name in enumerate(("addition", "concatenation"), 1):
        page.evaluate(TICK_AS_ROWS_COME, name)
        page.wait_for_function(f"(JSON.parse(sessionStorage.getItem('ticked')) || []).length === {many}")
        page.wait_for_timeout(200)
        assert page.locator(".ag-row", has_text=name).locator("input[type=checkbox]").is_checked()


def test_tabs_are_in_the_address_and_back_leads_to_the_one_before(screen, runs):
    shown = screen(runs)
    page = shown.run("concatenation")
    for tab, panel in (("Spectrum", "spectrum"), ("Where in the loop", "heat-state")):
        page.get_by_role("tab", name=tab).click()
        page.wait_for_selector(f"#panel-{panel} .main-svg")
    assert "tab=where" in page.url
    page.go_back()
    page.wait_for_selector("#panel-spectrum .main-svg")
    assert "tab=spectrum" in page.url
    sync_api.expect(page.get_by_role("tab", name="Spectrum")).to_have_attribute("aria-selected", "true")
    page.go_back()
    page.wait_for_selector("#panel-loss .main-svg")


def test_a_step_chosen_anywhere_shows_everywhere_and_survives_a_reload(screen, runs):
    shown = screen(runs)
    page = shown.run("concatenation", "?tab=where")
    box = page.locator("#panel-state .nsewdrag").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + box["height"] * 0.5)
    page.wait_for_selector("#panel-state .hoverlayer .legend")
    sync_api.expect(page.locator("#hover-line")).to_be_visible()
    page.mouse.down()
    page.mouse.up()
    page.wait_for_url(STEP)
    step = int(STEP.search(page.url).group(1))
    assert 70 <= step <= 90  # 40 % of 200 steps, give or take the axis' margins
    shown.expect("profile", f"training step {step}")
    page.keyboard.press("ArrowRight")
    shown.expect("profile", f"training step {step + 1}")
    page.reload()
    shown.expect("profile", f"training step {step + 1}")
    page.locator("#latest").click()
    shown.expect("profile", "training step 199")
    page.wait_for_function("!location.search.includes('step=')")


def test_one_cursor_stands_at_the_same_pixel_in_every_plot(screen, runs):
    page = screen(runs).run("concatenation", "?step=120")
    lefts = page.evaluate(
        "[...document.querySelectorAll('#steps .js-plotly-plot')].map(g => g.getBoundingClientRect().left"
        " + g._fullLayout.xaxis._offset + g._fullLayout.xaxis.l2p(g.layout.shapes[0].x0))"
    )
    assert len(lefts) == 3 and max(lefts) - min(lefts) < 0.6, lefts


def test_findings_select_their_step(screen, runs):
    shown = screen(runs)
    page = shown.run("concatenation")
    page.wait_for_function("!location.search.includes('step=')")
    cursors = (
        "[...document.querySelectorAll('#steps .js-plotly-plot')]"
        ".map(g => [g.layout.shapes[0].visible, g.layout.shapes[0].x0])"
    )
    buttons = page.locator(".ls-finding .ls-link")
    chosen = []
    for i in (0, buttons.count() - 1):
        step = int(re.search(r"step ([0-9,]+)", buttons.nth(i).inner_text())[1].replace(",", ""))
        buttons.nth(i).click()
        page.wait_for_function(f"new URL(location).searchParams.get('step') === '{step}'")
        page.wait_for_function(f"{cursors}.every(c => c[0] && c[1] === {step})")
        assert page.locator("#step-input").input_value() == str(step)
        chosen.append(step)
    assert len(set(chosen)) == 2  # the second choice was another step, and all plots followed


def test_zoom_is_shared_and_kept_while_a_live_run_grows(screen, tmp_path, elsewhere):
    training = elsewhere(tmp_path / "live.h5")
    training.tell("100")
    shown = screen(tmp_path)
    page = shown.run("live")
    training.tell("150")
    page.wait_for_function(f"{shown.points('loss')} === 150")  # it grew on screen without any action
    box = page.locator("#panel-loss .nsewdrag").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + box["height"] * 0.2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.8, steps=5)
    page.mouse.up()
    tall = "document.querySelector('#panel-loss .js-plotly-plot')._fullLayout.yaxis.range.map((v) => v.toFixed(3))"
    span = "document.querySelector('#panel-gain .js-plotly-plot')._fullLayout.xaxis.range.map(Math.round)"
    page.wait_for_function(f"({span})[1] < 100")
    before, height = page.evaluate(span), page.evaluate(tall)
    training.tell("200")
    page.wait_for_function("document.querySelector('#verdict').innerText.includes('200 steps')")
    page.wait_for_timeout(500)
    assert page.evaluate(span) == before and page.evaluate(tall) == height  # in both directions
    page.locator("#reset-zoom").click()
    page.wait_for_function(f"({span})[1] > 190")
    training.tell("end")
    sync_api.expect(page.locator("#state")).to_have_text(re.compile("finished"), timeout=PATIENCE)
    asked = []
    page.on("request", lambda request: "/alive" in request.url or asked.append(request.url))
    for _ in range(8):  # its last verdict may still be made
        asked.clear()
        page.wait_for_timeout(2500)  # two polls long
        if not asked:
            break
    assert asked == []  # a finished run is not polled


def test_new_deleted_and_changed_runs_show_up_in_the_table(screen, runs, write_run):
    page = screen(runs / "parcae").open()
    page.wait_for_selector(".ag-row >> text=seed0")
    write_run(runs / "parcae" / "seed1.h5", steps=20)
    page.wait_for_selector(".ag-row >> text=seed1")
    (runs / "parcae" / "seed0.h5").unlink()
    sync_api.expect(page.locator("a.ls-run")).to_have_text(["seed1"], timeout=PATIENCE)


def test_a_run_that_is_deleted_says_so_on_its_page(screen, tmp_path, training):
    live = training(tmp_path / "live.h5", steps=10)
    live.step(0)
    live.writer.flush()
    page = screen(tmp_path).run("live")
    (tmp_path / "live.h5").unlink()
    page.wait_for_selector("text=This run cannot be read any more")


def test_an_answer_that_never_comes_does_not_stop_the_clock(screen, runs):
    page = screen(runs).open()
    passed, skipped, late = page.evaluate("""() => {
        const { tick } = dash_clientside.loopscope, now = Date.now;
        const found = [tick(1, 0, 0, 0), tick(2, 1, 1, 0) === dash_clientside.no_update];
        Date.now = () => now() + 21000;
        try { return [...found, tick(3, 1, 1, 0)]; } finally { Date.now = now; }
    }""")
    assert (passed, skipped, late) == (1, True, 3)
    # An answer to what a reader asked for before the last tick, that comes after the answer to that tick:
    assert page.evaluate("dash_clientside.loopscope.latest(3, 5, 4, 4)") == [4, 5]


def test_a_page_lives_through_the_end_of_its_server_and_its_return(chromium, tmp_path, elsewhere):
    training = elsewhere(tmp_path / "live.h5")
    training.tell("60")
    first = Served(tmp_path)
    shown = Screen(chromium, first.base, first.index)
    page = shown.run("live")
    first.stop()
    sync_api.expect(page.locator("#light")).to_have_text("server gone", timeout=PATIENCE)
    training.tell("90")
    second = Served(tmp_path, port=first.port)
    try:
        sync_api.expect(page.locator("#light")).to_have_text(re.compile("updated"), timeout=PATIENCE)
        page.wait_for_function(f"{shown.points('loss')} === 90", timeout=3 * PATIENCE)
    finally:
        shown.context.close()
        second.stop()


def test_a_run_that_is_resumed_from_an_earlier_step_is_drawn_anew(screen, tmp_path, training):
    live = training(tmp_path / "live.h5", steps=200)
    for step in range(80):
        live.step(step)
    live.writer.flush()
    shown = screen(tmp_path)
    page = shown.run("live")
    page.wait_for_function(f"{shown.points('loss')} === 80")
    live.writer.close()
    live.writer = RunWriter.resume(tmp_path / "live.h5")
    for step in range(40, 60):
        live.step(step)
    live.writer.flush()
    page.wait_for_function(f"{shown.points('loss')} === 60")


def test_a_run_that_is_resumed_before_its_page_looks_for_news_is_drawn_anew(screen, tmp_path, training, monkeypatch):
    monkeypatch.setattr(run_page, "_pace", lambda held: 2500)
    live = training(tmp_path / "live.h5", steps=200)
    for step in range(80):
        live.step(step)
    live.writer.flush()
    shown = screen(tmp_path)
    page = shown.run("live")
    live.writer.close()
    live.writer = RunWriter.resume(tmp_path / "live.h5")
    for step in range(40, 60):
        live.step(step)
    live.writer.flush()
    page.wait_for_function(f"{shown.points('loss')} === 60")


def test_what_was_lost_on_its_way_is_drawn_later_although_nothing_is_new(screen, tmp_path, training):
    live = training(tmp_path / "live.h5", steps=200)
    for step in range(30):
        live.step(step)
    live.writer.flush()
    shown = screen(tmp_path)
    page = shown.run("live")
    lost = []

    def lose(route):
        if '"output":"..tails.data' in (route.request.post_data or "") and not lost:
            lost.append(route.request.url)
            route.fulfill(status=204)
        else:
            route.continue_()

    page.route(re.compile("_dash-update-component"), lose)
    for step in range(30, 60):
        live.step(step)
    live.writer.flush()
    while not lost:
        page.wait_for_timeout(50)
    page.evaluate("(() => { const now = Date.now; Date.now = () => now() + 21000; })()")
    page.wait_for_function(f"{shown.points('loss')} === 60")


def test_a_live_plot_grows_at_its_end_and_is_drawn_once_per_look(screen, tmp_path, elsewhere):
    training = elsewhere(tmp_path / "live.h5")
    training.tell("study")
    training.tell("100")
    shown = screen(tmp_path)
    page = shown.run("live", "?tab=where")
    page.evaluate(
        "window.drawn = {}; window.last = Date.now();"
        " for (const graph of document.querySelectorAll('#steps .js-plotly-plot')) {"
        " const name = graph.closest('.ls-panel').id; window.drawn[name] = 0;"
        " graph.on('plotly_afterplot', () => { window.drawn[name]++; window.last = Date.now(); }); }"
    )
    page.wait_for_function("Date.now() - window.last > 1500")  # nothing of the coming of the page is drawn any more
    page.evaluate("for (const name in window.drawn) window.drawn[name] = 0")
    whole = []
    page.on("request", lambda one: '"type":"panel"}.figure' in (one.post_data or "") and whole.append(one.url))
    training.tell("130")
    page.wait_for_function(f"{shown.points('state')} === 130")
    page.wait_for_timeout(1200)
    assert max(page.evaluate("window.drawn").values()) <= 2  # the tail, and the cursor that a new page sets
    assert whole == []  # tails only
    columns = "document.querySelector('#panel-heat-state .js-plotly-plot').data[0]"
    assert page.evaluate(f"{columns}.x.length") == 13 and page.evaluate(f"{columns}.z[0].length") == 13


def test_the_light_says_when_the_server_is_gone_and_when_it_is_back(chromium, serving, runs):
    base, index = serving(runs)
    shown = Screen(chromium, base, index)
    page = shown.open()
    sync_api.expect(page.locator("#light")).to_have_text(re.compile("updated"), timeout=PATIENCE)
    page.route("**/*", lambda route: route.abort())
    sync_api.expect(page.locator("#light")).to_have_text("server gone", timeout=PATIENCE)
    page.unroute("**/*")
    sync_api.expect(page.locator("#light")).to_have_text(re.compile("updated"), timeout=PATIENCE)
    shown.context.close()


def test_the_table_fits_a_phone(screen, runs):
    shown = screen(runs, width=390)
    page = shown.open()
    page.wait_for_selector(".ls-fitted .ag-row")
    assert shown.overflow() == 0
    grid = page.locator(".ag-body-horizontal-scroll-viewport")
    assert grid.count() == 0 or grid.evaluate("e => e.scrollWidth - e.clientWidth") <= 0


def test_dark_and_light_are_remembered_and_recolour_the_plots(screen, runs):
    shown = screen(runs, scheme="light")
    page = shown.run("addition")
    ink = "getComputedStyle(document.querySelector('#panel-loss .ytick text')).fill"
    page.wait_for_selector("#panel-loss .ytick text")
    light = page.evaluate(ink)
    page.locator("#scheme").click()
    page.wait_for_function(f"{ink} !== {light!r}")
    page.reload()
    page.wait_for_selector("#panel-loss .ytick text")
    assert page.locator("html").get_attribute("data-mantine-color-scheme") == "dark"
    assert page.evaluate(ink) != light


def test_everything_can_be_reached_with_the_keyboard(screen, runs):
    shown = screen(runs)
    page = shown.run("concatenation")
    page.get_by_role("tab", name="When").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_selector("#panel-heat-state .main-svg")
    about = page.locator("#panel-state summary")
    about.focus()
    page.keyboard.press("Enter")
    sync_api.expect(page.locator("#panel-state >> text=Worrying:")).to_be_visible()
    page.keyboard.press("Escape")
    sync_api.expect(page.locator("#panel-state >> text=Worrying:")).not_to_be_visible()


def test_panels_say_what_they_show_and_can_be_taken_along(screen, runs):
    page = screen(runs).run("concatenation")
    label = "document.querySelector('#panel-loss .js-plotly-plot').getAttribute('aria-label')"
    page.wait_for_function(f"({label} || '').startsWith('Training loss. loss: ')")
    page.locator("#panel-loss summary").click()
    for word in ("SVG", "PNG", "CSV"):
        with page.expect_download() as taken:
            page.locator("#panel-loss .ls-about").get_by_text(word, exact=True).click()
        content = Path(taken.value.path()).read_bytes()
        assert {"SVG": b"<svg", "PNG": b"PNG", "CSV": b"step,loss"}[word] in content[:500]
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("#panel-loss .ls-about").get_by_text("copy link").click()
    page.wait_for_selector("text=copied")
    assert page.evaluate("navigator.clipboard.readText()").endswith("#panel-loss")


def test_play_goes_through_training(screen, runs):
    shown = screen(runs)
    page = shown.run("concatenation", "?tab=spectrum")
    shown.expect("spectrum", "step 190: ")
    page.evaluate(
        "window.steps = []; setInterval(() => {"
        " const said = /step (\\d+): /.exec(document.getElementById('panel-spectrum').textContent);"
        " if (said && window.steps.at(-1) !== Number(said[1])) window.steps.push(Number(said[1])); }, 50)"
    )
    button = page.locator("#play")
    button.click()
    page.wait_for_url(STEP)
    page.wait_for_function("window.steps.length > 2")
    button.click()
    sync_api.expect(button).to_have_text("▶ play through training", timeout=PATIENCE)
    newest, *played = page.evaluate("window.steps")
    assert newest == 190 and played == sorted(played) and played[0] < 190  # forwards
    assert max(later - step for step, later in pairwise(played)) <= 20  # none was overtaken
    stopped = page.url
    page.wait_for_timeout(1000)
    assert page.url == stopped


def test_the_loops_of_training_and_another_run_to_compare_with_are_chosen_in_the_page(screen, runs):
    shown = screen(runs)
    page = shown.run("concatenation", "?tab=where")
    shown.expect("heat-state", "fixed batch")
    page.locator("#batch-choice").get_by_text("training steps").click()
    shown.expect("heat-state", "training steps")
    page.wait_for_url(re.compile("batch=training"))
    page.get_by_role("tab", name="Configuration").click()
    page.locator("#against-choice").click()
    page.get_by_text("addition", exact=True).click()
    page.wait_for_url(re.compile("against=addition"))


def test_hostile_files_are_rows_and_text_and_nothing_else(screen, tmp_path, write_run):
    write_run(tmp_path / "<img src=x onerror=alert(1)>.h5", steps=20, end=1.6, model="<script>alert(1)</script>",
              config={"injection": "<b>bold</b>", "lr": "javascript:alert(1)"})  # fmt: skip
    (tmp_path / "self.h5").symlink_to("self.h5")
    shown = screen(tmp_path)
    page = shown.open()
    page.on("dialog", lambda dialog: shown.faults.append("a file opened a dialog"))
    sync_api.expect(page.locator(".ag-row")).to_have_count(2, timeout=PATIENCE)
    sync_api.expect(page.locator("#runs")).to_contain_text("a link that leads to itself", timeout=PATIENCE)
    assert page.locator("#runs img, #runs b").count() == 0
    page = shown.run("-img", "?tab=configuration")
    assert "<script>alert(1)</script>" in page.locator("#tab-words").inner_text()
    assert page.locator("main script, main img, #verdict b").count() == 0


def test_broken_and_empty_runs_explain_themselves_on_their_pages(screen, runs):
    shown = screen(runs)
    page = shown.open(f"/run/{next(one for one in shown.ids() if one.startswith('foreign'))}")
    page.wait_for_selector("text=This run cannot be read")
    page.locator("text=All runs").click()
    page.wait_for_selector(".ag-row")
    shown.run("no-rows")
    shown.expect("loss", "No loss was recorded.")


def test_a_live_run_is_followed_where_drawing_takes_longer_than_a_poll(screen, tmp_path, elsewhere, monkeypatch):
    training = elsewhere(tmp_path / "live.h5")
    training.tell("100")
    shown = screen(tmp_path)
    page = shown.run("live")
    over, real = threading.Event(), run_page._figures
    monkeypatch.setattr(run_page, "_figures", lambda *given: (over.wait(1.4), real(*given))[1])
    try:
        for step in range(102, 400, 2):  # news at every poll: none of them may keep the answer to the one before away
            training.tell(str(step))
            page.wait_for_timeout(500)
            if page.evaluate(f"{shown.points('loss')} > 100"):
                break
        assert step < 300  # long before the news ended
    finally:
        over.set()
        time.sleep(0.5)  # for what is being answered, before the server goes
