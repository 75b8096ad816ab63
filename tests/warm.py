"""The command in a process of its own that need not import torch again: forked from one that has.

It can be killed, it has its own exit code and its own streams, and nothing of the test is in it; only what takes three
seconds of every start, the imports, was done before. Tests of the imports themselves, and of what a shell sees, start a
real one.
"""

import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired
from tempfile import TemporaryDirectory

IMPORTED = ("torch", "torch._dynamo", "loopscope.cli", "loopscope.commands.training", "loopscope.gate.check")


def warm() -> ForkServerContext:
    """Return the context whose server has imported everything; it starts with the first process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    return context


class Command:
    """A command that runs, as `subprocess.Popen`."""

    def __init__(self, words: Sequence[object], folder: Path) -> None:
        self.words = [str(word) for word in words]
        self.out, self.err = folder / "stdout", folder / "stderr"
        request = {"REQUEST": (self.words, str(self.out), str(self.err), dict(os.environ), str(Path.cwd()))}
        # By a function of Python's own: a test module cannot be imported by its name.
        self.process = warm().Process(target=runpy.run_path, args=(__file__, request, "__command__"))
        self.process.start()

    def poll(self) -> int | None:
        return self.process.exitcode

    def kill(self) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()

    def wait(self, timeout: float) -> CompletedProcess[str]:
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.kill()
            raise TimeoutExpired(self.words, timeout)
        return CompletedProcess(self.words, self.process.exitcode, self.out.read_text(), self.err.read_text())


def run(*words: object, timeout: float = 120) -> CompletedProcess[str]:
    """Return what a command came to."""
    with TemporaryDirectory() as folder:
        return Command(words, Path(folder)).wait(timeout)


def _run(words: list[str], out: str, err: str, environment: dict[str, str], folder: str) -> None:
    """Become the command: its streams, environment and folder."""
    for path, stream in ((out, 1), (err, 2)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(file, stream)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["loopscope", *words]
    from loopscope.cli import main

    main()


if __name__ == "__command__":
    _run(*REQUEST)  # noqa: F821 - `Command` gives it
