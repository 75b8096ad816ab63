"""Synthetic runs written with the real writer, and a server on a free port for browser tests."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from loopscope.probes.flight_recorder import FlightRecorder
from loopscope.runfile.flights import FlightStep
from loopscope.runfile.layout import BLOCK_NORM, GRADIENT_NORM, TOKEN_MAP, Event
from loopscope.runfile.writer import RunWriter

WIDTH = 16


def loop_table(radius: float, depth: int, rng: np.random.Generator) -> np.ndarray:
    """One step's loops of a state driven by a linear part of the given radius: (depth + 1, 4) as in the run file."""
    t = np.arange(depth + 1)
    residual = 5.0 * radius**t * np.exp(rng.normal(0, 0.05, depth + 1))
    state = 3 + np.concatenate([[0], np.cumsum(residual[:-1])])
    cosine = np.full(depth + 1, 0.9)
    residual[-1] = cosine[0] = cosine[-1] = np.nan
    return np.stack([state, residual, cosine, np.full(depth + 1, 256.0)], axis=1)


def eigenvalues(radius: float, rng: np.random.Generator) -> np.ndarray:
    """Eigenvalues of a real matrix whose spectral radius is the given one, largest modulus first."""
    values = np.linalg.eigvals(rng.normal(size=(WIDTH, WIDTH)))
    values = values[np.argsort(-np.abs(values))]
    return values * radius / np.abs(values[0])


BLOCKS = {"prelude": ["prelude.0"], "sublayers": ["injection", "core.0"]}
INFO = {"model": "synthetic", "a_bar_learned": True, "site": BLOCKS}


class Training:
    """A pretended training: ρ drifts from ``start`` to ``end``; the loss falls, and jumps once ρ is well above 1.

    While ``study`` is set, it records what the preset of that name does.
    """

    def __init__(self, writer: RunWriter, *, start: float, end: float, steps: int, seed: int = 0) -> None:
        self.writer, self.start, self.end, self.steps = writer, start, end, steps
        self.rng = np.random.default_rng(seed)
        self.study, self.flights = False, FlightRecorder()

    def radius(self, step: int) -> float:
        return self.start + (self.end - self.start) * min(step / self.steps, 1.0)

    def step(self, step: int) -> None:
        radius, rng = self.radius(step), self.rng
        loss = 2.4 + 3.1 * np.exp(-step / (0.12 * self.steps)) + rng.normal(0, 0.06) + 2.2 * max(0, radius - 1.15)
        loops = loop_table(min(radius, 4.0), int(np.clip(rng.poisson(8), 1, 24)), rng)
        named = {"loss": loss, "grad_norm": 0.8, "lr": 0.05, "tokens": 256, "depth": len(loops) - 1}
        if step % 5 == 0:  # what is not given is not recorded; a NaN given would be a finding
            named["a_bar_norm"] = 1.25 * radius
        self.writer.append_step({"step": step, **named, "a_bar_radius": radius}, loops)
        if step % 10 == 0:
            self.writer.append_probe(step, loop_table(radius, 16, rng))
            self.writer.append_spectrum(step, eigenvalues(radius, rng))
        alerts = []
        if radius > 1.15 and step % 25 == 0:
            text = f"loss spike: {loss:.2f} at step {step}"
            alerts.append(Event(step, 0.0, "loss_spike", "warning", loss, 4.0, text))
            self.writer.append_event(alerts[0])
        if self.study:
            self.record_inside(step, radius)
            self.flights.record(self.writer, FlightStep(step=step, scalars={"loss": loss}), alerts)

    def record_inside(self, step: int, radius: float) -> None:
        """Norms of three blocks, gradients of the last four of eight loops, and every tenth step a map of two sequences
        of 20 tokens."""
        gradient = 0.1 * radius ** np.arange(8.0, -1, -1)
        gradient[:5] = np.nan
        self.writer.append_array(step, BLOCK_NORM, np.array([1, 5, 5 * radius], np.float32))
        self.writer.append_array(step, GRADIENT_NORM, gradient.astype(np.float32))
        if step % 10 == 0:
            tokens = 5 * radius ** np.arange(16.0)[:, None, None] * np.linspace(1, 2, 40).reshape(2, 20)
            self.writer.append_array(step, TOKEN_MAP, tokens.astype(np.float32))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test see what another one, or this user, left in the cache of rows."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def write_synthetic(
    path: Path, *, start: float = 0.6, end: float = 0.7, steps: int = 200, seed: int = 0, study: bool = False,
    **info: object,
) -> Path:  # fmt: skip
    """Write a whole run and seal it."""
    writer = RunWriter.create(path, info=INFO | info, eigenvalues=WIDTH)
    training = Training(writer, start=start, end=end, steps=steps, seed=seed)
    training.study = study
    for step in range(steps):
        training.step(step)
    writer.flush()
    writer.seal()
    writer.close()
    return path


@pytest.fixture
def write_run() -> Callable[..., Path]:
    """Return a function that writes a whole run and seals it."""
    return write_synthetic


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of runs that are written once; tests work on copies of them."""
    folder = tmp_path_factory.mktemp("recorded")
    runs = folder / "runs"
    (runs / "parcae").mkdir(parents=True)
    write_synthetic(runs / "parcae" / "seed0.h5", start=0.45, end=0.8, seed=1)
    write_synthetic(runs / "addition.h5", start=1.0, end=1.0, seed=2)
    write_synthetic(runs / "concatenation.h5", start=0.65, end=2.6, seed=3)
    (runs / "foreign.h5").write_bytes(b"not HDF5 at all")
    RunWriter.create(runs / "no rows.h5", info={"model": "none"}).close()
    write_synthetic(folder / "study.h5", start=0.65, end=2.6, study=True)
    return folder


@pytest.fixture
def training() -> Iterator[Callable[..., Training]]:
    """Return a function that starts a run which stays live until the test writes its end."""
    started: list[Training] = []

    def start(path: Path, *, steps: int, start: float = 0.6, end: float = 1.4) -> Training:
        writer = RunWriter.create(path, info=INFO, eigenvalues=WIDTH)
        started.append(Training(writer, start=start, end=end, steps=steps))
        return started[-1]

    yield start
    for one in started:
        one.writer.close()


class Elsewhere:
    """A pretended training in a process of its own, as real ones are; it writes when told to."""

    SCRIPT = """
import importlib.util, pathlib, sys
spec = importlib.util.spec_from_file_location("pretended", sys.argv[1])
pretended = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pretended)
writer = pretended.RunWriter.create(pathlib.Path(sys.argv[2]), info={}, eigenvalues=pretended.WIDTH)
training = pretended.Training(writer, start=0.6, end=1.4, steps=400)
done = 0
for line in sys.stdin:
    if line.strip() == "end":
        writer.seal()
        writer.close()
    elif line.strip() == "study":
        training.study = True
    else:
        for step in range(done, int(line)):
            training.step(step)
        done = int(line)
        writer.flush()
    print("written", flush=True)
"""

    def __init__(self, path: Path) -> None:
        command = [sys.executable, "-c", self.SCRIPT, __file__, str(path)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def tell(self, what: str) -> None:
        """Write rows up to a step number, begin to ``study`` or ``end`` the run; returns once they are on disk."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "written\n"


@pytest.fixture
def elsewhere() -> Iterator[Callable[[Path], Elsewhere]]:
    """Return a function that starts a training in another process."""
    started: list[Elsewhere] = []

    def start(path: Path) -> Elsewhere:
        started.append(Elsewhere(path))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.communicate()


@pytest.fixture
def runs(tmp_path: Path, recorded: Path) -> Path:
    """Return a folder with a stable, a marginal and an unstable run, and two files that are none."""
    return Path(shutil.copytree(recorded / "runs", tmp_path, dirs_exist_ok=True))


@pytest.fixture
def study(tmp_path: Path, recorded: Path) -> Path:
    """Return a run that recorded what the preset `study` does."""
    return Path(shutil.copy2(recorded / "study.h5", tmp_path / "study.h5"))


@pytest.fixture
def serving() -> Iterator[Callable[..., tuple[str, object]]]:
    """Return a function that serves some paths on a free port in this process and gives address and index."""
    from .serving import Served

    servers: list[Served] = []

    def start(*paths: Path) -> tuple[str, object]:
        servers.append(Served(*paths))
        return servers[-1].base, servers[-1].index

    yield start
    for server in servers:
        server.stop()


class Client:
    """The dashboard behind Flask's test client: fetches addresses and fires callbacks as a browser would."""

    def __init__(self, *paths: Path) -> None:
        from loopscope.dashboard.app import create_app
        from loopscope.dashboard.index import CONFIG_KEY

        self.app = create_app(paths)
        self.index = self.app.server.config[CONFIG_KEY]
        self.http = self.app.server.test_client()
        self.get("/_dash-layout")  # Dash collects callbacks on the first request

    def get(self, address: str, host: str = "127.0.0.1:8050"):
        return self.http.get(address, headers={"Host": host})

    def page(self, address: str) -> dict:
        """The page that the browser is sent to show at an address."""
        path, _, query = address.partition("?")
        search = f"?{query}" if query else ""
        return self.fire(
            "_pages_content.children", {"_pages_location.pathname": path, "_pages_location.search": search}
        )

    def fire(self, output: str, values: dict[str, object]) -> dict:
        """Fire the callback that writes ``output`` with these inputs and states; returns what it changed."""
        key, callback = next((k, c) for k, c in self.app.callback_map.items() if output in k)
        names = [part.split("@")[0] for part in key.strip(".").split("...")]
        outputs = [dict(zip(("id", "property"), name.rsplit(".", 1), strict=True)) for name in names]

        def given(group: str) -> list[dict]:
            return [{**one, "value": values.get(f"{one['id']}.{one['property']}")} for one in callback[group]]

        inputs = given("inputs")
        body = {
            "output": key,
            "outputs": outputs if key.startswith("..") else outputs[0],
            "inputs": inputs,
            "changedPropIds": [f"{inputs[0]['id']}.{inputs[0]['property']}"],
            "state": given("state"),
        }
        answer = self.http.post("/_dash-update-component", json=body, headers={"Host": "127.0.0.1:8050"})
        assert answer.status_code in (200, 204), answer.text
        return answer.get_json()["response"] if answer.status_code == 200 else {}


@pytest.fixture
def client() -> Iterator[Callable[..., Client]]:
    """Return a function that builds a `Client` over some paths."""
    made: list[Client] = []

    def make(*paths: Path) -> Client:
        made.append(Client(*paths))
        return made[-1]

    yield make
    for one in made:
        one.index.close()
