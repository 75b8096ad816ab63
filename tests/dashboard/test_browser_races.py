"""What a reader meets on a slow machine: answers that come late, out of turn, or after the page has been left.

Answers are held back here until the reader has done the next thing, so that no test depends on how fast anything is.
"""

import re

from .test_browser import PATIENCE, chromium, pytestmark, screen, sync_api  # noqa: F401  (fixtures)

QUESTIONS = re.compile("_dash-update-component")


class Held:
    """Answers of the server to some question, asked at once and given to the page when the test says so.

    Args:
        page: A page of the browser.
        words: What the question has in it.
        most: So many are held back; what is asked later is answered as usual.
    """

    def __init__(self, page: "sync_api.Page", words: str, most: int = 1) -> None:
        self.page, self.words, self.most, self.answers = page, words, most, []
        page.route(QUESTIONS, self._answer)

    def _answer(self, route: "sync_api.Route") -> None:
        if self.words not in (route.request.post_data or "") or len(self.answers) >= self.most:
            route.fallback()
        else:
            self.answers.append((route, route.fetch()))

    def wait(self) -> "Held":
        """Wait until the server has answered."""
        for _ in range(PATIENCE // 20):
            if len(self.answers) == self.most:
                return self
            self.page.wait_for_timeout(20)
        raise AssertionError(f"nothing with {self.words} was asked")

    def give(self) -> None:
        """Let the page have the answers."""
        for route, answer in self.answers:
            route.fulfill(response=answer)
        self.page.wait_for_timeout(300)  # for what must not happen


LAYOUT = '"output":".._pages_content'


def test_rows_that_come_before_the_table_is_there_are_in_it(screen, runs):  # noqa: F811
    shown = screen(runs)
    table, polls = [], []
    shown.page.route("**/async-community*.js", lambda route: table.append(route))
    shown.page.on("response", lambda one: "runs-change" in (one.request.post_data or "") and polls.append(one.status))
    page = shown.open()
    for _ in range(PATIENCE // 50):
        page.wait_for_timeout(50)
        if len(polls) >= 6:
            break
    for one in table:
        one.continue_()
    first = page.locator(".ag-row[row-index='0']")
    sync_api.expect(first).to_contain_text("concatenation", timeout=PATIENCE)
    sync_api.expect(page.locator(".ag-row", has_text="reading…")).to_have_count(0)


def test_the_address_of_the_next_page_is_not_that_of_the_page_that_was_left(screen, runs):  # noqa: F811
    shown = screen(runs)
    page = shown.open("/alerts")
    link = page.locator(".ls-alerts tbody tr", has_text="concatenation").first.get_by_role("link", name="concatenation")
    sync_api.expect(link).to_be_visible(timeout=PATIENCE)
    late = Held(page, '"output":"..alerts-body').wait()
    coming = Held(page, LAYOUT)
    link.click()
    page.wait_for_url(re.compile(r"/run/concatenation-\w+\?step=\d+"))
    coming.wait()
    asked = page.url
    late.give()
    assert page.url == asked
    coming.give()
    page.wait_for_selector("#verdict")
    assert page.url == asked


def test_what_is_typed_while_the_next_page_comes_is_not_in_its_address(screen, runs):  # noqa: F811
    shown = screen(runs)
    page = shown.open()
    coming = Held(page, LAYOUT)
    page.locator("a.ls-run", has_text="concatenation").click()
    page.wait_for_url(re.compile("/run/"))
    coming.wait()
    page.locator("#query").press_sequentially("con")
    page.wait_for_timeout(300)
    assert "q=" not in page.url
    coming.give()
    page.wait_for_selector("#verdict")
    coming = Held(page, LAYOUT)
    page.get_by_role("link", name="Runs").click()
    page.wait_for_url(shown.base + "/")
    coming.wait()
    page.locator("#step-back").click()
    page.wait_for_timeout(300)
    assert page.url == shown.base + "/"
    coming.give()
    page.wait_for_selector(".ag-row")


def test_points_that_a_plot_has_are_not_added_again(screen, runs):  # noqa: F811
    page = screen(runs).run("concatenation")
    steps = page.evaluate("""() => {
        const graph = document.querySelector("#panel-loss .js-plotly-plot"), { name } = graph.data[0];
        const news = { range: [-1, 210], generation: graph.layout.meta.generation,
                       traces: [{ name, x: [198, 199, 200, 201], y: [1, 2, 3, 4] }] };
        const grow = () => dash_clientside.loopscope.grow({ panels: { loss: news } }, 1, [{ name: "loss" }]);
        grow();
        grow();
        return Array.from(graph.data[0].x._inputArray || graph.data[0].x);
    }""")
    assert steps[-3:] == [199, 200, 201] and steps == sorted(set(steps))


def test_words_of_a_tab_that_was_left_do_not_come_into_the_next_one(screen, runs):  # noqa: F811
    page = screen(runs).run("concatenation")
    late = Held(page, '{\\"tab\\":[\\"ALL\\"],\\"type\\":\\"words\\"}.children')
    page.locator(".ls-finding .ls-link").first.click()
    late.wait()
    page.get_by_role("tab", name="Configuration").click()
    sync_api.expect(page.locator("#tab-words")).to_contain_text("a_bar_learned", timeout=PATIENCE)
    said = page.locator("#tab-words").inner_text()
    late.give()
    assert page.locator("#tab-words").inner_text() == said


CURSORS = """[...document.querySelectorAll('#steps .js-plotly-plot')].map((graph) => graph.layout)
    .filter(({ meta }) => meta && meta.over_steps).map(({ shapes }) => [shapes[0].visible, shapes[0].x0])"""


def test_a_step_chosen_while_plots_are_drawn_is_marked_in_them(screen, runs):  # noqa: F811
    page = screen(runs).run("concatenation", "?tab=where&step=120")
    late = Held(page, '"output":"..{\\"name\\":[\\"ALL\\"],\\"type\\":\\"panel\\"}')
    page.locator("#batch-choice").get_by_text("training steps").click()
    late.wait()
    page.locator("#step-back").click()
    page.wait_for_url(re.compile("step=119"))
    late.give()
    page.wait_for_function(f"{CURSORS}.every(([on, step]) => on && step === 119)")


def test_a_step_chosen_while_a_tab_comes_is_the_step_of_the_tab(screen, runs):  # noqa: F811
    shown = screen(runs)
    page = shown.run("concatenation", "?step=120")
    late = Held(page, '"output":"..tab-body')
    page.get_by_role("tab", name="Where in the loop").click()
    late.wait()
    page.locator("#step-back").click()
    page.wait_for_url(re.compile("step=119"))
    late.give()
    shown.expect("profile", "training step 119")
    page.wait_for_function(f"{CURSORS}.every(([on, step]) => on && step === 119)")


def test_a_box_drawn_while_the_map_is_drawn_lists_the_runs_in_it(screen, runs):  # noqa: F811
    shown = screen(runs)
    page = shown.open("/map?x=last.loss&y=last.a_bar_radius")
    rows = page.locator("#map-table tbody tr")
    sync_api.expect(rows).to_have_count(3, timeout=PATIENCE)
    late = Held(page, '"output":"..map.figure')
    chosen = page.locator("#map-table a", has_text="addition").get_attribute("href")
    page.evaluate("dash_clientside.set_props('map-y', { value: 'largest.a_bar_radius' })")
    late.wait()
    page.evaluate(f"dash_clientside.set_props('map-brushed', {{ data: ['{chosen}'] }})")
    sync_api.expect(rows).to_have_count(1, timeout=PATIENCE)
    late.give()
    sync_api.expect(page.locator("#map-table thead")).to_contain_text("largest", timeout=PATIENCE)
    sync_api.expect(rows).to_have_count(1)


def test_coming_back_to_the_runs_leaves_the_address_as_it_was(screen, runs):  # noqa: F811
    shown = screen(runs)
    page = shown.open()
    page.locator("a.ls-run", has_text="concatenation").click()
    page.wait_for_selector("#verdict")
    page.get_by_role("link", name="Runs").click()
    page.wait_for_selector(".ls-fitted .ag-row")
    page.wait_for_timeout(300)
    assert page.url == shown.base + "/"
    page.locator("summary", has_text="columns").click()
    page.locator("#columns").get_by_text("seed", exact=True).click()
    page.wait_for_url(re.compile("columns=.*seed"))
    page.locator("a.ls-run", has_text="concatenation").click()
    page.wait_for_selector("#verdict")
    page.go_back()
    page.wait_for_selector(".ls-fitted .ag-row")
    page.wait_for_timeout(300)
    assert re.search("columns=.*seed", page.url)
    sync_api.expect(page.locator(".ag-header-cell[col-id='seed']")).to_have_count(1)
