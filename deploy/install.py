"""Makes the virtual environment that `make` uses: `python3 -m deploy.install FOLDER EXTRAS`.

Says on standard error what it does and for how long, as pip is silent for minutes. A new FOLDER is
gone when it is interrupted, and so is all that pip writes in between; an environment in which
somebody was cut short (killed, say) is made anew. With an NVIDIA driver, and elsewhere than on
Linux, torch is the index's; else its CPU build, from the index or from PyTorch's own.

Exit status 0; 1 where something cannot be installed; 130, 143, 129 where a signal ended it. Stands
on the standard library, as nothing else is there yet.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from loadgen import interrupts
from loadgen.steps import step

OLDEST = (3, 11)  # of Python
TORCH, TORCH_CPU = "torch>=2.11", "torch==2.13.0+cpu"
PYTORCH_INDEX = "https://download.pytorch.org/whl/cpu"
MOST_LINES = 30  # of what pip said, where it failed
EXIT_S = 10.0  # for pip to end by itself


class NotInstalled(Exception):
    """Something could not be installed; the message says what, and how it ended."""


def main(argv: Sequence[str]) -> int:
    """Makes the environment and returns the exit status. `argv` is the folder, and the extras."""
    folder, extras = Path(argv[0]), argv[1]
    if sys.version_info < OLDEST:
        version = ".".join(map(str, sys.version_info[:2]))
        print(
            f"Python 3.11 or newer is needed, {sys.executable} is {version}:"
            " name another by `make PYTHON=python3.11`",
            file=sys.stderr,
        )
        return 1
    environment = Environment(folder)
    try:
        with interrupts.handled(interrupts.interrupt):
            environment.make(extras)
        return 0
    except (NotInstalled, OSError) as error:
        print(f"install: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        return interrupts.exit_status(interrupts.number_of(error))


class Environment:
    """A virtual environment. While something is being installed in it, it has a file that says so;
    where that is found at the start, somebody was cut short.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._unfinished = folder / ".unfinished"
        self._temporary = folder / ".tmp"  # pip's, so that it is gone with the rest

    def make(self, extras: str) -> None:
        """Makes it, or brings it up to date. Raises NotInstalled, or Interrupted."""
        if self._unfinished.exists():
            self._remove()
        is_new = not (self._folder / "bin" / "python").exists()
        if is_new and self._folder.exists() and any(self._folder.iterdir()):
            raise NotInstalled(f"{self._folder} is there and is no virtual environment")
        try:
            self._temporary.mkdir(parents=True, exist_ok=True)
            if is_new:
                self._make_empty()
            self._install(extras)
        except KeyboardInterrupt:
            if is_new and self._folder.exists():
                self._remove()
            raise
        finally:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def _remove(self) -> None:
        """Removes it, last of all what says that it is not complete. A second interrupt waits."""
        with interrupts.unheard(), step("removing what was not finished"):
            self._unfinished.touch()
            for path in self._folder.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif path != self._unfinished:
                    path.unlink()
            shutil.rmtree(self._folder)

    def _make_empty(self) -> None:
        what = "making a virtual environment"
        try:
            self._run(what, sys.executable, "-m", "venv", self._folder)
        except NotInstalled:
            self._remove()
            raise

    def _install(self, extras: str) -> None:
        has_gpu = shutil.which("nvidia-smi") is not None
        if has_gpu or sys.platform != "linux":
            self._pip("installing PyTorch, the largest part", TORCH)
        else:
            try:
                self._pip("installing PyTorch for the CPU, the largest part", TORCH_CPU)
            except NotInstalled:
                index = ("--index-url", PYTORCH_INDEX)
                self._pip("installing it from PyTorch's own index", TORCH_CPU, *index)
        self._pip("installing Niyama and the rest", "-e", "./client", "-e", f".[{extras}]")

    def _pip(self, what: str, *arguments: str) -> None:
        python = self._folder / "bin" / "python"
        options = ("--quiet", "--disable-pip-version-check", "--no-input")
        self._run(what, python, "-m", "pip", "install", *options, *arguments)

    def _run(self, what: str, *command: str | Path) -> None:
        """Runs a command to its end; an interrupt ends it and all that it has started. Raises
        NotInstalled where it fails.
        """
        temporary = self._temporary.resolve()
        self._unfinished.touch()
        with (temporary / "output").open("w+b") as output, step(what):
            status = _status(command, output, {**os.environ, "TMPDIR": str(temporary)})
            self._unfinished.unlink()
            if status:
                output.seek(0)
                said = output.read().decode(errors="replace").splitlines()[-MOST_LINES:]
                raise NotInstalled("\n".join([f"{what}: exit status {status}", *said]))


def _status(
    command: Sequence[str | Path], output: IO[bytes], environment: Mapping[str, str]
) -> int:
    """Returns the exit status of a command that runs in a process group of its own, which is ended
    whole where an interrupt comes first.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    )
    try:
        return process.wait()
    except BaseException:
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, signal.SIGINT)
            process.wait(EXIT_S)
        with contextlib.suppress(ProcessLookupError):  # nothing is left of it
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
