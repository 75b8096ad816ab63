"""Cells on the machines of a Ray cluster, or on a local one that is started for the sweep.

A cell whose worker or machine dies is trained again from its checkpoint, elsewhere if need be; so all machines must see
the folder of the sweep. Needs ``loopscope[ray]``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .engine import Train
from .grid import Cell
from .processes import ATTEMPTS, SECONDS, one_thread, train_one


@dataclass(frozen=True, slots=True)
class OnRay:
    """Engine of a Ray cluster.

    Args:
        address: Of the cluster, as ``ray.init`` takes it; empty starts one on this machine.
        jobs: Cells trained at the same time on a cluster that is started here; 0 means one per processor.
        gpus: GPUs that one cell takes; may be a fraction.
    """

    address: str = ""
    jobs: int = 0
    gpus: float = 0.0

    def run(self, cells: Sequence[Cell], paths: Sequence[Path], train: Train) -> Iterator[tuple[Cell | None, str]]:
        """Train every cell; see `Engine.run`."""
        ray = _ray()
        if self.address:
            ray.init(address=self.address, log_to_driver=False)
        else:
            ray.init(num_cpus=self.jobs or None, include_dashboard=False, log_to_driver=False)
        try:
            remote = ray.remote(num_cpus=1, num_gpus=self.gpus, max_retries=ATTEMPTS - 1)(_train_alone)
            waiting = {
                remote.remote(train, path.resolve(), cell.run): cell for cell, path in zip(cells, paths, strict=True)
            }
            while waiting:
                ended, _ = ray.wait(list(waiting), timeout=SECONDS)
                for reference in ended:
                    cell = waiting.pop(reference)
                    try:
                        yield cell, ray.get(reference)
                    except ray.exceptions.RayError as error:
                        yield cell, f"{type(error).__name__} after {ATTEMPTS} attempts"
                if not ended:
                    yield None, ""
        finally:
            ray.shutdown()


def _train_alone(train: Train, path: Path, run: Any) -> str:
    """Train one cell in a worker of Ray."""
    one_thread()
    return train_one(train, path, run)


def _ray() -> Any:
    """Return the package, or say how to get it."""
    try:
        import ray
    except ImportError:
        raise ModuleNotFoundError("the engine ray needs the package ray: pip install 'loopscope[ray]'") from None
    return ray
