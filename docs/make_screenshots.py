"""Take a picture of every page and tab of the dashboard over the runs that ship with it.

python docs/make_screenshots.py FOLDER            all of them: both themes, 1280 and 390 pixels wide
python docs/make_screenshots.py docs --few        those that the README and docs/dashboard.md show
"""

import itertools
import shutil
import sys
import threading
from pathlib import Path

import waitress
from loopscope.dashboard.app import create_app
from loopscope.dashboard.example import example_runs
from loopscope.dashboard.index import CONFIG_KEY
from loopscope.dashboard.pages import all_pages
from loopscope.dashboard.tabs import all_tabs
from playwright.sync_api import Browser, sync_playwright

RUN = "concatenation-lr0.05"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run", "--disable-sync"]
FEW = {  # file, theme and page of the pictures that are shown; GitHub chooses the README's by the reader's theme
    "figures/dashboard-runs.png": ("light", "runs"),
    "figures/dashboard-when.png": ("light", "run-when"),
    "figures/dashboard-when-dark.png": ("dark", "run-when"),
    "figures/dashboard-where.png": ("light", "run-where"),
    "figures/dashboard-map.png": ("light", "map"),
}
DRAWN = "[...document.querySelectorAll('.dash-graph')].every(g => g.querySelector('.main-svg'))"
READ = "!document.body.innerText.includes('reading…')"


def addresses(runs: dict[str, str]) -> dict[str, str]:
    """Return every page and tab by a name for its picture, over runs by name."""
    pages = {page.name: page.path for page in all_pages() if page.link}
    pages["compare"] = f"/compare?runs={','.join(runs.values())}"
    pages["explorer-run"] = f"/explorer?kind=run&run={runs[RUN]}&contours=on&gain=0.3"
    pages["explorer-story"] = "/explorer?kind=concatenation&norm=2.6&skew=10&loops=64&contours=on"
    pages |= {"rule": "/rules/LS020", "missing": "/nowhere"}
    return pages | {f"run-{tab}": f"/run/{runs[RUN]}?tab={tab}" for tab in all_tabs()}


def pictures(chrome: Browser, address: str, files: dict[str, Path], *, width: int, whole: bool) -> None:
    """Take a picture of a page in each of some themes, once everything on it is drawn."""
    context = chrome.new_context(viewport={"width": width, "height": 860})
    page = context.new_page()
    page.set_default_timeout(180_000)
    page.goto(address)
    page.wait_for_selector("main h1, main .ls-card")
    page.wait_for_function(DRAWN)
    page.wait_for_function(READ)
    page.wait_for_timeout(600)
    for scheme, file in files.items():
        page.emulate_media(color_scheme=scheme)
        page.wait_for_timeout(400)  # until its colours have changed
        page.screenshot(path=file, full_page=whole)
    context.close()


def main(folder: Path, few: bool) -> None:
    """Serve the recorded runs and go through the pages."""
    app = create_app([example_runs()])
    server = waitress.create_server(app.server, host="127.0.0.1", port=0, threads=8)
    threading.Thread(target=server.run, daemon=True).start()
    base = f"http://127.0.0.1:{server.effective_port}"
    runs = {entry.name: entry.id for entry in app.server.config[CONFIG_KEY].entries()}
    with sync_playwright() as playwright:
        chrome = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        pages = {name: base + address for name, address in addresses(runs).items()}
        if few:
            for file, (scheme, name) in FEW.items():
                pictures(chrome, pages[name], {scheme: folder / file}, width=1160, whole=False)
        else:
            for name, width in itertools.product(pages, (1280, 390)):
                files = {scheme: folder / f"{name}-{scheme}-{width}.png" for scheme in ("light", "dark")}
                pictures(chrome, pages[name], files, width=width, whole=True)
        chrome.close()
    server.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), "--few" in sys.argv)
