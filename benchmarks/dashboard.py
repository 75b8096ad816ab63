"""What the dashboard costs: a run of 10⁶ steps, 300 runs, and what a first load moves; beside Plotly and TensorBoard.

Times are of the processor where the machine may be shared, and say so; the drawing in the browser is wall time, with
the load of the machine beside it. The server is a process of its own, as that of a user is.

    python benchmarks/dashboard.py [STEPS] [--runs 300] [--no-browser]
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from loopscope.dashboard.index import RunIndex
from loopscope.dashboard.opened import OpenRun
from loopscope.dashboard.panel import Ask, drawn
from loopscope.dashboard.panels import PANELS
from loopscope.dashboard.summary import RunTable
from loopscope.dashboard.tabs import all_tabs
from loopscope.dashboard.tails import tail
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


def have(charts: dict[str, go.Figure]) -> dict[str, dict[str, float]]:
    """Return what a page says it has of its plots: the last step of every line."""
    return {
        name: {
            str(trace.name): float(chart.layout.meta["until"] if trace.type == "heatmap" else trace.x[-1])
            if len(trace.x)
            else -1.0
            for trace in chart.data
        }
        for name, chart in charts.items()
    }


def long_run(training: Training, path: Path) -> None:
    """Measure tabs, ticks, panels and memory of one long live run."""
    before = memory()
    began = time.process_time()
    held = OpenRun(path)
    print(f"\nrun of {len(held.run):,} steps, live; processor seconds\nopen {time.process_time() - began:.3f}")
    print(f"{'tab':14s} {'cold':>7s} {'tick':>7s} {'sent by a tick':>15s} {'largest panel':>14s}")
    for tab in all_tabs().values():
        began = time.process_time()
        charts = {name: drawn(PANELS[name], Ask(held, batch="training")) for name in tab.panels}
        sizes = [len(chart.to_json()) for chart in charts.values()]
        cold = time.process_time() - began
        ends = have({name: chart for name, chart in charts.items() if not PANELS[name].at_step})
        ticks, sent = [], 0
        for _ in range(5):
            training.run(training.done + TICK_ROWS)
            began = time.process_time()
            held.refresh()
            ask = Ask(held, batch="training")
            news = {name: tail(PANELS[name], ask, lines) for name, lines in ends.items()}
            for name, parts in news.items():  # as the page does once it has drawn them
                ends[name] |= {part["name"]: part["x"][-1] for part in parts.get("traces", ()) if part["x"]}
            at = [drawn(PANELS[name], ask).to_json() for name in tab.panels if PANELS[name].at_step]
            sent = len(json.dumps(news)) + sum(map(len, at))
            ticks.append(time.process_time() - began)
        largest = max(sizes, default=0) / 1e3
        print(f"{tab.name:14s} {cold:7.3f} {np.median(ticks):7.3f} {sent / 1e3:12.1f} kB {largest:11.0f} kB")
    kept = held.kept_bytes / 2**20
    print(f"memory: process grew by {memory() - before:.0f} MB at most, kept for the run {kept:.0f} MB")
    began = time.process_time()
    held.story()
    print(f"verdict, behind the page: {time.process_time() - began:.2f}; kept {held.kept_bytes / 2**20:.0f} MB")
    steps, loss = held.run["step"], held.run["loss"]
    began = time.process_time()
    naive = go.Figure(go.Scatter(x=steps.tolist(), y=loss.tolist())).to_json()
    print(f"naive Plotly, loss alone: {time.process_time() - began:.2f} s, {len(naive) / 1e6:.0f} MB")
    tensorboard(path.parent, steps, loss)
    held.close()


def tensorboard(folder: Path, steps: Any, loss: Any) -> None:
    """Measure TensorBoard's own reader on the same losses; what it keeps by default, and whether the spike is in it."""
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError:
        print("TensorBoard is not installed: not measured")
        return
    log = folder / "events"
    writer = EventFileWriter(str(log), max_queue_size=1000)
    for step, value in zip(steps.tolist(), loss.tolist(), strict=True):
        summary = Summary(value=[Summary.Value(tag="loss", simple_value=value)])
        writer.add_event(Event(wall_time=1.7e9 + step, step=int(step), summary=summary))
    writer.close()
    for kept, words in ((1000, "its default of 1000 points"), (0, "all points")):
        began, wall = time.process_time(), time.perf_counter()
        events = EventAccumulator(str(log), size_guidance={"scalars": kept})
        events.Reload()
        points = events.Scalars("loss")
        took = time.process_time() - began
        spike = any(point.value > 8 for point in points)
        gone = any(np.isnan(point.value) for point in points)
        print(
            f"TensorBoard, loss alone, {words}: {took:.1f} s ({time.perf_counter() - wall:.1f} wall), "
            f"{len(points):,} points, the spike {'is' if spike else 'is not'} among them, "
            f"the NaN {'is' if gone else 'is not'}"
        )


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
        began, processor = time.perf_counter(), processor_seconds()
        rows = table.rows()
        first = time.perf_counter() - began
        serial = 0
        while table.reading:
            serial, _, _ = table.since(serial)  # as a page does, if more often
            time.sleep(0.1)
        done = time.perf_counter() - began
        time.sleep(0.5)  # for helpers to end, so that their time is counted
        used = processor_seconds() - processor
        load = f"load {os.getloadavg()[0]:.1f}"
        print(
            f"{len(rows)} runs, {kind}: rows {first:.2f} s, verdicts {done:.2f} s wall ({used:.2f} s processor), {load}"
        )
        table._save()


def processor_seconds() -> float:
    """Processor time of this process and of those it started and that have ended."""
    return time.process_time() + sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


def fresh_page(chrome: Any, moved: list[float]) -> Any:
    """Return a page of a browser that has seen nothing yet; ``moved[0]`` counts the bytes it is sent."""
    page = chrome.new_context(viewport={"width": 1280, "height": 900}).new_page()
    page.set_default_timeout(120_000)
    protocol = page.context.new_cdp_session(page)
    protocol.send("Network.enable")
    protocol.on("Network.loadingFinished", lambda event: moved.__setitem__(0, moved[0] + event["encodedDataLength"]))
    return page


def browser(training: Training, folder: Path) -> None:
    """Measure what a first load and a second page move, how long a click takes, and how soon new rows are there."""
    from playwright.sync_api import sync_playwright

    command = [sys.executable, "-m", "loopscope", "dash", str(folder)]
    environment = os.environ | {"XDG_CACHE_HOME": str(folder.parent / "cold")}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert server.stdout is not None
    base = server.stdout.readline().split()[2]
    print(f"load of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    with sync_playwright() as playwright:
        chrome = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        moved = [0.0]
        page, began = fresh_page(chrome, moved), time.perf_counter()
        page.goto(base)
        page.wait_for_selector("a.ls-run")
        print(f"Runs, first: rows after {time.perf_counter() - began:.2f} s wall, {moved[0] / 1e6:.2f} MB moved")
        page.wait_for_function("window.Plotly !== undefined")  # it comes while the browser is idle
        page.wait_for_timeout(500)
        print(f"and, while the reader looks at them, {moved[0] / 1e6:.2f} MB in all")
        moved[0] = 0.0
        page.locator("a.ls-run", has_text="long").click()
        began = time.perf_counter()
        page.wait_for_selector("#panel-events .main-svg")
        print(f"cold click on a run until all panels are drawn: {time.perf_counter() - began:.2f} s wall")
        print(f"second page: {moved[0] / 1e3:.0f} kB moved")
        page.wait_for_function("!document.querySelector('#verdict').innerText.includes('reading')")
        print(f"its verdict: {time.perf_counter() - began:.2f} s wall")
        began = time.perf_counter()
        page.get_by_role("tab", name="Where in the loop").click()
        page.wait_for_selector("#panel-heat-cosine .main-svg")
        print(f"click on its second tab until all panels are drawn: {time.perf_counter() - began:.2f} s wall")
        page.get_by_role("tab", name="When").click()
        page.wait_for_selector("#panel-loss .main-svg")
        page.wait_for_timeout(6000)  # until the page looks for news at its usual pace
        end = "Number(document.querySelector('#panel-loss .js-plotly-plot')._fullLayout.xaxis.range[1])"
        waits = []
        for _ in range(5):
            before = page.evaluate(end)
            moved[0] = 0.0
            training.run(training.done + TICK_ROWS)
            began = time.perf_counter()
            page.wait_for_function(f"{end} > {before}")
            waits.append(time.perf_counter() - began)
            page.wait_for_timeout(700)
        pace = f"{np.median(waits):.2f} s (longest {max(waits):.2f})"
        print(f"new rows on screen after {pace}; {moved[0] / 1e3:.1f} kB moved")
        address = page.url
        page, moved[0], began = fresh_page(chrome, moved), 0.0, time.perf_counter()
        page.goto(address)
        page.wait_for_selector("#panel-events .main-svg")
        print(f"run page, first: drawn after {time.perf_counter() - began:.2f} s wall, {moved[0] / 1e6:.2f} MB moved")
        chrome.close()
    server.kill()
    server.communicate()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("steps", type=float, nargs="?", default=1e6)
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--no-browser", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        long, many = Path(scratch) / "long", Path(scratch) / "many"
        long.mkdir()
        many.mkdir()
        live = Training(long / "long.h5", int(asked.steps))
        live.run(int(asked.steps))
        long_run(live, long / "long.h5")
        if not asked.no_browser:
            browser(live, long)
        live.writer.close()
        many_runs(many, asked.runs)
