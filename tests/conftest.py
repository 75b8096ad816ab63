"""What tests of several folders need: a small looped model, runs written by hand, a full disk, two processes."""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from loopscope.models import build
from loopscope.models.looped import LoopedTransformer
from torch import Tensor, nn

# Hypothesis fails a test whose examples take long to draw, which says something of how busy the machine is.
settings.register_profile("loopscope", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("loopscope")


@pytest.fixture(autouse=True)
def as_loud_as_before() -> Iterator[None]:
    """Puts the level of our logger back: commands that quieten it in a process of their own are called in ours."""
    logger = logging.getLogger("loopscope")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture(scope="session")
def torchrun() -> Callable[[Path, Path], None]:
    """Runs a script in two processes and gives it a folder to write to."""

    def launch(worker: Path, out: Path) -> None:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        done = subprocess.run(
            [*command, str(worker), str(out)],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            timeout=240,
        )
        assert done.returncode == 0, done.stderr[-3000:]

    return launch


class RecordedStates:
    """Keeps what a model's injection and read-out receive: the states h_0 … h_T of each forward."""

    def __init__(self, model: LoopedTransformer) -> None:
        self.forwards: list[list[Tensor]] = []
        self.inputs: list[Tensor] = []
        self.training: list[bool] = []
        model.injection.register_forward_pre_hook(self._loop)
        model.read_out.register_forward_pre_hook(self._finish)
        model.register_forward_pre_hook(self._begin)

    def _begin(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.forwards.append([])
        self.training.append(module.training)

    def _loop(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if not self.forwards[-1]:
            self.inputs.append(args[1].detach().double())
        self.forwards[-1].append(args[0].detach().double().clone())

    def _finish(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.forwards[-1].append(args[0].detach().double().clone())


@pytest.fixture
def recorded_states() -> type[RecordedStates]:
    return RecordedStates


@pytest.fixture
def demo_model() -> Callable[..., LoopedTransformer]:
    def make(injection: str = "parcae", seed: int = 0, **overrides: Any) -> LoopedTransformer:
        torch.manual_seed(seed)
        return build("demo", injection=injection, **overrides)

    return make


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 256, (4, 32), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run from whole series; ``probe`` maps a step to (T + 1, 4) loop rows; a run with a loss has 8 loops."""

    def write(
        name: str = "run.h5",
        *,
        info: dict[str, Any] | None = None,
        loops: np.ndarray | None = None,
        probe: dict[int, np.ndarray] | None = None,
        **series: Any,
    ) -> Path:
        from loopscope.runfile.writer import RunWriter

        path = tmp_path / name
        writer = RunWriter.create(path, info={"a_bar_learned": True, **(info or {})})
        count = max((len(np.atleast_1d(values)) for values in series.values()), default=0)
        if "loss" in series:
            series.setdefault("depth", 8.0)
        columns = {key: np.broadcast_to(np.asarray(values, float), count) for key, values in series.items()}
        for step in range(count):
            values = {key: float(column[step]) for key, column in columns.items()}
            given = [value for key, value in values.items() if key in ("loss", "grad_norm")]
            row = {"step": float(step), "time": 1e9 + step, "nonfinite": float(np.sum(~np.isfinite(given)))} | values
            writer.append_step(row, loops)
            if probe and step in probe:
                writer.append_probe(step, probe[step])
        writer.flush()
        writer.seal()
        writer.close()
        return path

    return write


@pytest.fixture
def loop_rows() -> Callable[..., np.ndarray]:
    """Loop rows of a law: steps ``first * ratio**t`` in one direction."""

    def rows(ratio: float, first: float = 1.0, loops: int = 16) -> np.ndarray:
        steps = first * ratio ** np.arange(loops)
        state = np.concatenate([[1.0], 1.0 + np.cumsum(steps)])
        nan = [np.nan]
        return np.stack(
            [
                state,
                np.concatenate([steps, nan]),
                np.concatenate([nan, np.ones(loops - 1), nan]),
                np.full(loops + 1, 8.0),
            ],
            axis=1,
        ).astype(np.float32)

    return rows


@pytest.fixture(scope="session")
def foreign() -> Callable[[str], ModuleType]:
    """Loads a stand-in of ``foreign/`` by name."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(
            f"foreign_{name}", Path(__file__).parent / "foreign" / f"{name}.py"
        )
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
