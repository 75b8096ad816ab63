"""What the dashboard costs: a run of 10⁶ steps, 300 runs, and what a first load moves.

Times are of the processor where the machine may be shared, and say so; the drawing in the browser is wall time.

    python benchmarks/dashboard.py [STEPS] [--runs 300] [--no-browser]
"""

import argparse
import resource
import shutil
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import waitress
from loopscope.dashboard.app import create_app
from loopscope.dashboard.index import CONFIG_KEY, RunIndex
from loopscope.dashboard.opened import OpenRun
from loopscope.dashboard.panels import PANELS, Ask, drawn
from loopscope.dashboard.summary import RunTable
from loopscope.dashboard.tabs import all_tabs
from loopscope.runfile.writer import RunWriter

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run", "--disable-sync"]
TICK_ROWS = 50


class Training:
    """A pretended training of about eight loops a step, with one spike, one NaN and one infinite state."""

    def __init__(self, path: Path, steps: int) -> None:
        rng = np.random.default_rng(0)
        self.writer = RunWriter.create(path, info={"a_bar_learned": True}, eigenvalues=16)
        self.depths = np.clip(rng.poisson(8, steps + 10_000), 1, 24)
        self.loss = 2.4 + 3 * np.exp(-np.arange(steps + 10_000) / (0.1 * steps)) + rng.normal(0, 0.03, steps + 10_000)
        self.loss[steps // 3], self.loss[steps // 2] = 9.0, np.nan
        self.lost = 2 * steps // 3
        t = np.arange(25.0)
        self.loops = np.stack([10 + t, 5 * 0.8**t, np.full(25, 0.9), np.full(25, 256.0)], axis=1).astype(np.float32)
        self.done = 0

    def run(self, until: int) -> None:
        """Record steps up to a number of them."""
        for step in range(self.done, until):
            depth = int(self.depths[step])
            loops = self.loops[: depth + 1].copy()
            loops[-1, 1] = loops[0, 2] = loops[-1, 2] = np.nan
            if step == self.lost:
                loops[-1, 0] = np.inf
            row = {"step": step, "time": 1.7e9 + step, "loss": self.loss[step], "grad_norm": 0.8, "lr": 0.01}
            row |= {"depth": depth, "depth_min": depth, "depth_max": depth, "a_bar_radius": 0.8, "a_bar_norm": 1.1}
            self.writer.append_step(row | {"nonfinite": float(np.isnan(self.loss[step]))}, loops)
            if step % 500 == 0:
                probe = self.loops[:17].copy()
                probe[-1, 1] = probe[0, 2] = probe[-1, 2] = np.nan
                self.writer.append_probe(step, probe)
                self.writer.append_spectrum(step, np.full(16, 0.8 + 0.1j))
            if step % 5000 == 0:
                self.writer.flush()
        self.done = until
        self.writer.flush()


def memory() -> float:
    """Return the most memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def long_run(folder: Path, steps: int) -> Path:
    """Measure tabs, ticks, panels and memory of one long live run; return it, sealed."""
    path = folder / "long.h5"
    training = Training(path, steps)
    training.run(steps)
    before = memory()
    began = time.process_time()
    held = OpenRun(path)
    print(f"\nrun of {steps:,} steps, live; processor seconds\nopen {time.process_time() - began:.3f}")
    print(f"{'tab':14s} {'cold':>7s} {'tick':>7s} {'largest panel':>14s}")
    for tab in all_tabs().values():
        began = time.process_time()
        sizes = [len(drawn(PANELS[name], Ask(held, batch="training")).to_json()) for name in tab.panels]
        cold = time.process_time() - began
        ticks = []
        for _ in range(5):
            training.run(training.done + TICK_ROWS)
            began = time.process_time()
            held.refresh()
            for name in tab.panels:
                if not PANELS[name].at_step:
                    drawn(PANELS[name], Ask(held, batch="training")).to_json()
            ticks.append(time.process_time() - began)
        print(f"{tab.name:14s} {cold:7.3f} {np.median(ticks):7.3f} {max(sizes, default=0) / 1e3:11.0f} kB")
    kept = held.kept_bytes / 2**20
    print(f"memory: process grew by {memory() - before:.0f} MB at most, kept for the run {kept:.0f} MB")
    began = time.process_time()
    held.story()
    print(f"verdict, behind the page: {time.process_time() - began:.2f}")
    loss = held.run["loss"]
    began = time.process_time()
    naive = go.Figure(go.Scatter(x=held.run["step"].tolist(), y=loss.tolist())).to_json()
    print(f"naive Plotly, loss alone: {time.process_time() - began:.2f} s, {len(naive) / 1e6:.0f} MB")
    held.close()
    training.writer.seal()
    training.writer.close()
    return path


def many_runs(folder: Path, count: int) -> None:
    """Measure the table over many runs of 200 steps."""
    training = Training(folder / "0.h5", 200)
    training.run(200)
    training.writer.seal()
    training.writer.close()
    for i in range(1, count):
        shutil.copy(folder / "0.h5", folder / f"{i}.h5")
    cache = folder / "cache"
    for kind in ("cold", "warm"):
        table = RunTable(RunIndex([folder]), cache)
        began, processor = time.perf_counter(), time.process_time()
        rows = table.rows()
        first = time.perf_counter() - began
        while table.reading:
            time.sleep(0.02)
        done, used = time.perf_counter() - began, time.process_time() - processor
        print(f"{len(rows)} runs, {kind}: rows {first:.2f} s, verdicts {done:.2f} s ({used:.2f} s processor)")
        table._save()


def browser(folder: Path) -> None:
    """Measure what a first load and a second page move, and how long a click takes until all panels are drawn."""
    from playwright.sync_api import sync_playwright

    app = create_app([folder])
    server = waitress.create_server(app.server, host="127.0.0.1", port=0, threads=8)
    threading.Thread(target=server.run, daemon=True).start()
    base = f"http://127.0.0.1:{server.effective_port}"
    (identifier,) = [entry.id for entry in app.server.config[CONFIG_KEY].entries() if entry.name == "long"]
    with sync_playwright() as playwright:
        chrome = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        page = chrome.new_context(viewport={"width": 1280, "height": 900}).new_page()
        moved = [0.0]
        protocol = page.context.new_cdp_session(page)
        protocol.send("Network.enable")
        protocol.on(
            "Network.loadingFinished", lambda event: moved.__setitem__(0, moved[0] + event["encodedDataLength"])
        )
        for what, address in (("Runs", "/"), ("run page", f"/run/{identifier}"), ("Runs again", "/")):
            moved[0], began = 0.0, time.perf_counter()
            page.goto(base + address)
            page.wait_for_selector(".ag-row" if address == "/" else "#panel-events .main-svg")
            took = time.perf_counter() - began
            page.wait_for_timeout(1500)
            print(f"{what:11s} {took:5.2f} s wall, {moved[0] / 1e6:.2f} MB moved")
        page.locator("a.ls-run", has_text="long").click()
        began = time.perf_counter()
        page.wait_for_selector("#panel-events .main-svg")
        print(f"click on a run until all panels are drawn: {time.perf_counter() - began:.2f} s wall")
        began = time.perf_counter()
        page.get_by_role("tab", name="Where in the loop").click()
        page.wait_for_selector("#panel-heat-cosine .main-svg")
        print(f"click on its second tab until all panels are drawn: {time.perf_counter() - began:.2f} s wall")
        chrome.close()
    server.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("steps", type=float, nargs="?", default=1e6)
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--no-browser", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "long").mkdir()
        (Path(scratch) / "many").mkdir()
        long_run(Path(scratch) / "long", int(asked.steps))
        many_runs(Path(scratch) / "many", asked.runs)
        if not asked.no_browser:
            browser(Path(scratch) / "long")
