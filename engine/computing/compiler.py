"""Whether torch.compile can be used here, where it keeps what it makes, and why it failed.

torch compiles by calling a compiler: g++ for a CPU, Triton for a GPU. What it makes is kept on disk
between starts, in a folder that is this user's alone, because whoever loads a file from there runs
what is in it. torch's own choice, a name that anybody can guess among everybody's temporary files,
is therefore never taken: neither for compiled code nor for the headers prepared for the compiler.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from engine.checkpoint.options import COMPILE
from engine.private import NotPrivate, default_folder, make, private_folder, temporary_folder

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
TRITON_VARIABLE = "TRITON_CACHE_DIR"
MOST_GRAPHS = 1 << 10  # of the same code, over all models of a process
LONGEST_REASON = 300  # characters
_ERRORS = (RuntimeError, OSError, ImportError, subprocess.SubprocessError)  # of torch's compilers


class CompilationFailed(ValueError):
    """Something could not be compiled. The message is one line that says why."""


def prepare(mode: str, device: torch.device, cache: Path | None) -> tuple[bool, str]:
    """Decides whether to compile, and returns it with a line for the operator, or an empty one.

    `mode` is one of options.COMPILE: "auto" compiles where a compiler is found. What is compiled is
    kept in `cache`, or where the environment has torch keep it, or in a default folder; where that
    is not private (private.py), in a temporary folder of this process. Raises ValueError for "on"
    where it cannot be done, and for a mode that there is not.
    """
    if mode not in COMPILE:
        raise ValueError(f"compile must be one of {', '.join(COMPILE)}, got {mode!r}")
    if mode == "off":
        return False, ""
    missing, note = compiler_missing(device), ""
    if not missing:
        try:
            note = keep_compiled_in(cache or _usual_folder())
        except (OSError, NotPrivate) as error:
            missing = f"no folder for it is private: {error}"
    if missing and mode == "on":
        raise ValueError(f"--compile on: {missing}")
    return (False, f"not compiled: {missing}") if missing else (True, note)


def compiler_missing(device: torch.device) -> str:
    """Says what torch.compile would not find on this machine. Only what can be looked for quickly
    is: an empty answer does not promise that compiling works, which shows when it is tried.
    """
    if device.type == "cpu":
        compiler = os.environ.get("CXX", "g++")  # as torch looks for it
        return "" if shutil.which(compiler) else f"no C++ compiler ({compiler}) is found"
    from torch.utils._triton import has_triton

    return "" if has_triton() else "torch finds no Triton"


def _usual_folder() -> Path | None:
    kept, ours = os.environ.get(CACHE_VARIABLE), default_folder()
    return Path(kept) if kept else ours and ours / "compiled"


def keep_compiled_in(folder: Path | None) -> str:
    """Has torch keep in `folder` what this process compiles from now on, and find it there again.

    Where that is no private folder, or None, a temporary one of this process is used, and the
    answer says why; otherwise the answer is empty. Raises NotPrivate, or OSError, where no
    temporary folder is private either.
    """
    try:
        if folder is None:
            raise FileNotFoundError("this user has no home folder, and XDG_CACHE_HOME is not set")
        kept, note = private_folder(folder), ""
    except (OSError, NotPrivate) as error:
        kept, note = temporary_folder(), f"what is compiled is lost at the end: {error}"
    os.environ[CACHE_VARIABLE] = str(kept)
    _keep_triton_private(kept)
    temporary = kept / "temporary"
    make(temporary)
    os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
    return note


def _keep_triton_private(kept: Path) -> None:
    """Moves Triton's folder beside torch's in `kept` where the environment names one that is not
    private. Where it names none, torch puts it there by itself.
    """
    named = os.environ.get(TRITON_VARIABLE)
    if named is not None:
        try:
            private_folder(Path(named))
        except (OSError, NotPrivate):
            os.environ[TRITON_VARIABLE] = str(kept / "triton")


@contextmanager
def compiling() -> Iterator[None]:
    """Lets torch compile what is called inside as often as it has to, and raises CompilationFailed
    where a compiler fails.
    """
    try:
        with torch._dynamo.config.patch(recompile_limit=MOST_GRAPHS):
            yield
    except _ERRORS as error:
        raise CompilationFailed(_reason(error)) from error


def _reason(error: BaseException) -> str:
    """Returns one line that says what went wrong. torch wraps the first error in others, and a
    compiler's output says more than that it failed.
    """
    while isinstance(inner := getattr(error, "inner_exception", None), BaseException):
        error = inner
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if "error:" in line] or lines or [""]
    return f"{type(error).__name__}: {told[0]}"[:LONGEST_REASON]


def end_compilers() -> None:
    """Ends the processes in which torch compiles, if there are any: in service nothing is."""
    if compilers := sys.modules.get("torch._inductor.async_compile"):
        compilers.shutdown_compile_workers()
