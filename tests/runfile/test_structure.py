"""Run files whose structure was changed: data or one line for a person, never a crash, a hang or another file's bytes.

``LOOPSCOPE_STRUCTURE_SECONDS=3600`` runs the long version.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

SECONDS = os.environ.get("LOOPSCOPE_STRUCTURE_SECONDS", "15")


def test_whatever_a_file_is_made_of_gives_data_or_one_line(tmp_path: Path) -> None:
    worker = Path(__file__).with_name("structure_worker.py")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, worker, tmp_path, "0", SECONDS], env=environment, text=True, stdout=subprocess.PIPE
    )
    *said, count = done.stdout.splitlines()
    assert done.returncode == 0 and count == f"{len(said)} cases" and len(said) >= 5
    wrong = [line for line in said if not re.search(r": (data|refused \(.*\)?)$", line)]
    assert not wrong, "\n".join(wrong)
