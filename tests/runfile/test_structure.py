"""Run files whose structure was changed: data or one line for a person, never a crash, a hang or another file's bytes.

``LOOPSCOPE_STRUCTURE_SECONDS=3600`` runs the long version.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

SECONDS = os.environ.get("LOOPSCOPE_STRUCTURE_SECONDS", "30")
FINE = re.compile(r": (data|refused \(.*\)?)$")


def run_worker(*words: str | Path) -> subprocess.CompletedProcess[str]:
    worker = Path(__file__).with_name("structure_worker.py")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, worker, *words], env=environment, text=True, stdout=subprocess.PIPE)


def test_whatever_a_file_is_made_of_gives_data_or_one_line(tmp_path: Path) -> None:
    done = run_worker(tmp_path, "0", SECONDS)
    *said, counts, count = done.stdout.splitlines()
    assert done.returncode == 0 and count == f"{len(said)} cases" and len(said) >= 3
    wrong = [line for line in said if not FINE.search(line)]
    assert not wrong, "\n".join([*wrong, counts])


def test_every_change_can_be_made_in_every_table_of_every_version(tmp_path: Path) -> None:
    """A change that fails would be a case that tries nothing, and nobody would see it."""
    done = run_worker(tmp_path, "every-change")
    assert (done.returncode, done.stdout) == (0, "")
