"""The dashboard in a real browser: what is on the screen, what the console says, and where requests go."""

import re
import shutil
import threading
import time
from collections.abc import Iterator

import pytest
from loopscope.dashboard import panels, summary

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
# How many points the plot of the loss has; a long column arrives in binary.
LOSSES_SHOWN = "(({x}).length ?? ({x})._inputArray.length)".format(
    x="document.querySelector('#plot-loss .js-plotly-plot').data[0].x"
)
PATIENCE = 20_000  # ms; a page takes about one second on an idle machine, the machine may be busy

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

    def __init__(self, browser: "sync_api.Browser", base: str, *, width: int = 1280, scheme: str = "light") -> None:
        self.base, self.faults = base, []
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
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

    def title(self, plot: str) -> str:
        """The title drawn on a plot, read from the screen."""
        return self.page.locator(f"#plot-{plot} .gtitle").inner_text()

    def wait_for_title(self, plot: str, pattern: str) -> None:
        sync_api.expect(self.page.locator(f"#plot-{plot} .gtitle")).to_have_text(re.compile(pattern), timeout=PATIENCE)

    def overflow(self) -> int:
        """By how many pixels the page is wider than the window."""
        return self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


@pytest.fixture
def screen(chromium, serving) -> Iterator:
    opened: list[Screen] = []

    def show(*paths, **settings) -> Screen:
        opened.append(Screen(chromium, serving(*paths), **settings))
        return opened[-1]

    yield show
    for one in opened:
        one.context.close()
        assert one.faults == []  # every test of this file: a silent console, and no request off this server


def test_click_on_a_row_opens_the_run(screen, runs):
    shown = screen(runs)
    page = shown.open()
    page.locator(".ag-row", has_text="concatenation").locator("[col-id=steps]").click()
    page.wait_for_selector("#plot-spectrum .main-svg")
    assert re.search(r"/run/concatenation-[0-9a-f]{8}$", page.url)
    assert "unstable" in page.locator("#verdict").inner_text()
    page.locator("text=← Runs").click()
    page.wait_for_selector(".ag-row")
    assert "foreign" in page.locator("#runs").inner_text() and "not an HDF5 file" in page.locator("#runs").inner_text()


def test_selected_step_shows_everywhere_and_survives_a_reload(screen, runs):
    shown = screen(runs)
    page = shown.open()
    page.locator(".ag-row", has_text="concatenation").locator("[col-id=steps]").click()
    shown.wait_for_title("profile", "step 199")
    box = page.locator("#plot-loss .nsewdrag").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + box["height"] * 0.5)
    page.wait_for_selector("#plot-loss .hoverlayer .legend")
    page.mouse.down()
    page.mouse.up()
    page.wait_for_url(re.compile(r"step=\d+"))
    step = int(re.search(r"step=(\d+)", page.url).group(1))
    assert 70 <= step <= 90  # 40 % of 200 steps, give or take the axis' margins
    shown.wait_for_title("profile", f"training step {step}")
    shown.wait_for_title("spectrum", f"step {step // 10 * 10}")  # spectra are recorded every ten steps
    page.reload()
    shown.wait_for_title("profile", f"training step {step}")
    page.locator("#latest").click()
    shown.wait_for_title("profile", "training step 199")
    assert "step=" not in page.url


def test_slider_and_findings_select_steps_too(screen, runs):
    shown = screen(runs)
    page = shown.open()
    page.locator(".ag-row", has_text="concatenation").locator("[col-id=steps]").click()
    page.wait_for_selector(".ls-finding .ls-link")
    link = page.locator(".ls-finding .ls-link").first
    step = int(link.inner_text().removeprefix("step "))
    link.click()
    shown.wait_for_title("profile", f"training step {step}")
    page.locator("#slider [role=slider]").focus()
    page.keyboard.press("ArrowRight")
    shown.wait_for_title("profile", f"training step {step + 1}")
    assert page.url.endswith(f"?step={step + 1}")


def test_zoom_is_shared_and_kept_while_a_live_run_grows(screen, tmp_path, elsewhere):
    training = elsewhere(tmp_path / "live.h5")
    training.tell("100")
    shown = screen(tmp_path)
    page = shown.open()
    page.wait_for_selector(".ag-row >> [col-id=state] >> text=live")
    page.locator(".ag-row").locator("[col-id=steps]").click()
    shown.wait_for_title("profile", "training step 99")
    training.tell("150")
    shown.wait_for_title("profile", "training step 149")  # it grew on screen without any action
    page.wait_for_function(f"{LOSSES_SHOWN} === 150")  # the plots over steps are drawn by a question of their own

    box = page.locator("#plot-loss .nsewdrag").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + box["height"] * 0.5)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.5, steps=5)
    page.mouse.up()
    span = "document.querySelector('#plot-state .js-plotly-plot')._fullLayout.xaxis.range.map(Math.round)"
    page.wait_for_function(f"({span})[1] < 100")
    before = page.evaluate(span)
    training.tell("200")
    shown.wait_for_title("profile", "training step 199")
    assert page.evaluate(span) == before
    training.tell("end")
    sync_api.expect(page.locator("#state")).to_have_text(re.compile("finished"), timeout=PATIENCE)
    page.wait_for_timeout(1500)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(2500)  # two polls long
    assert asked == []  # a finished run is not polled


@pytest.fixture
def slowed(monkeypatch) -> Iterator:
    """Return a function that makes a function of a module take longer; at the end nothing is kept waiting."""
    over = threading.Event()

    def slow(module, name: str, seconds: float) -> None:
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given: (over.wait(seconds), real(*given))[1])

    yield slow
    over.set()
    time.sleep(0.5)  # for what is being answered, before the server goes


@pytest.mark.parametrize("slow", ["step_figures", "detail_figures"])
def test_a_live_run_is_followed_where_drawing_takes_longer_than_a_poll(screen, tmp_path, elsewhere, slowed, slow):
    training = elsewhere(tmp_path / "live.h5")
    training.tell("100")
    shown = screen(tmp_path)
    page = shown.open()
    page.locator(".ag-row").click()
    shown.wait_for_title("profile", "training step 99")
    slowed(panels, slow, 1.4)
    grown = f"{LOSSES_SHOWN} > 100 && !/step 99/.test(document.querySelector('#plot-profile .gtitle').textContent)"
    for step in range(110, 400, 10):  # news at every poll: none of them may keep the answer to the one before away
        training.tell(str(step))
        page.wait_for_timeout(500)
        if page.evaluate(grown):
            break
    assert step < 300  # on both sides of the page, long before the news ended


def test_a_slow_folder_of_runs_is_followed(screen, runs, write_run, slowed):
    shown = screen(runs / "parcae")
    page = shown.open()
    page.wait_for_selector(".ag-row >> text=seed0")
    slowed(summary, "rows", 2.5)
    write_run(runs / "parcae" / "seed1.h5", steps=20)
    page.wait_for_selector(".ag-row >> text=seed1", timeout=10_000)
    assert page.locator(".ls-run").all_inner_texts() == ["seed0", "seed1"]


def test_an_answer_that_never_comes_does_not_stop_the_clock(screen, runs):
    page = screen(runs).open()
    passed, skipped, late = page.evaluate("""() => {
        const { tick } = dash_clientside.loopscope, now = Date.now;
        const found = [tick(1, 0, 0, 0), tick(2, 1, 1, 0) === dash_clientside.no_update];
        Date.now = () => now() + 21000;
        try { return [...found, tick(3, 1, 1, 0)]; } finally { Date.now = now; }
    }""")
    assert (passed, skipped, late) == (1, True, 3)


def test_study_plots_appear_while_a_run_goes_on_and_fill_their_cards(screen, tmp_path, elsewhere):
    training = elsewhere(tmp_path / "live.h5")
    training.tell("100")
    shown = screen(tmp_path, width=390)
    page = shown.open()
    page.locator(".ag-row").click()
    page.wait_for_selector("#plot-spectrum .main-svg")
    hint, card = page.locator("#study-hint"), page.locator("#card-tokens")
    assert hint.is_visible() and not card.is_visible() and not page.locator("#flights").is_visible()
    training.tell("study")
    training.tell("400")
    sync_api.expect(card).to_be_visible(timeout=PATIENCE)
    shown.wait_for_title("tokens", "step 390")
    assert not hint.is_visible() and shown.overflow() == 0
    width = "document.querySelector('#plot-tokens .main-svg').getBoundingClientRect().width"
    page.wait_for_function(f"Math.abs({width} - {card.bounding_box()['width']}) < 30")
    page.locator("#flights summary").click()
    page.locator("#flights .ls-link").first.click()
    shown.wait_for_title("profile", "training step 300")
    shown.wait_for_title("tokens", "step 300")


def test_new_runs_show_up_in_the_table(screen, runs, write_run):
    shown = screen(runs / "parcae")
    page = shown.open()
    page.wait_for_selector(".ag-row >> text=seed0")
    write_run(runs / "parcae" / "seed1.h5", steps=20)
    page.wait_for_selector(".ag-row >> text=seed1")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone_has_one_column_and_no_sideways_scroll(screen, runs, scheme):
    shown = screen(runs, width=390, scheme=scheme)
    page = shown.open()
    page.wait_for_selector(".ls-fitted .ag-row")
    assert shown.overflow() == 0
    grid = page.locator(".ag-body-horizontal-scroll-viewport")
    assert grid.count() == 0 or grid.evaluate("e => e.scrollWidth - e.clientWidth") <= 0
    page.locator(".ag-row", has_text="concatenation").click()
    page.wait_for_selector("#plot-spectrum .main-svg")
    assert shown.overflow() == 0
    left = {round(box.bounding_box()["x"]) for box in page.locator(".ls-plot:visible").all()}
    assert len(left) == 1
    for plot in page.locator(".ls-plot:visible", has=page.locator(".legend")).all():
        title, legend = (plot.locator(part).bounding_box() for part in (".gtitle", ".legend"))
        assert title["y"] + title["height"] <= legend["y"] + 2, plot.inner_text()  # 2: air within the legend's box


def test_dark_and_light_are_remembered_and_recolour_the_plots(screen, runs):
    shown = screen(runs, scheme="light")
    page = shown.open()
    page.locator(".ag-row", has_text="addition").locator("[col-id=steps]").click()
    page.wait_for_selector("#plot-loss .gtitle")
    ink = "getComputedStyle(document.querySelector('#plot-loss .gtitle')).fill"
    light = page.evaluate(ink)
    page.locator("#scheme").click()
    page.wait_for_function(f"{ink} !== {light!r}")
    page.reload()
    page.wait_for_selector("#plot-loss .gtitle")
    assert page.locator("html").get_attribute("data-mantine-color-scheme") == "dark"
    assert page.evaluate(ink) != light


def test_broken_and_empty_runs_explain_themselves_on_their_pages(screen, runs):
    shown = screen(runs)
    page = shown.open()
    page.locator(".ag-row", has_text="foreign").click()
    page.wait_for_selector("text=This run cannot be read")
    page.locator("text=All runs").click()
    page.locator(".ag-row", has_text="no rows").click()
    page.wait_for_selector("#plot-loss >> text=No loss was recorded.")
