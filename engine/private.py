"""Folders and files that nobody else can have written to.

Whoever reads a cache of compiled code runs what lies in it: pickles and machine code. So such a
folder belongs to this user, others may not write to it, and no folder above it is one where others
could put another in its place. In a folder like /tmp, where each user may remove only what is his
own (sticky), nobody can. The superuser could do all that anyway, and so could the owner of the root
folder where that is another (in a container).
"""

from __future__ import annotations

import atexit
import fcntl
import functools
import grp
import os
import pwd
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

ONLY_OURS = 0o700
_OTHERS = 0o077
_OTHERS_WRITE = 0o022
_HELD = "-held"  # ends the name of a temporary folder that some process holds, or has held


class NotPrivate(ValueError):
    """Others may have written there. The message is one line that says where and why."""


def default_folder() -> Path | None:
    """Returns the folder of what is kept between starts, by the XDG Base Directory Specification;
    None where this user has no home.
    """
    stated = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(stated) if os.path.isabs(stated) else Path.home() / ".cache") / "niyama"
    except RuntimeError:
        return None


def private_folder(path: Path) -> Path:
    """Returns the folder's own path, without links. The folder is made, with those above it, where
    it is missing.

    Raises NotPrivate, or OSError where it cannot be made or written to.
    """
    path = Path(os.path.abspath(path))
    make(path)
    for each in (path, *path.parents):
        _refuse_link_of_another(each)
    folder = path.resolve(strict=True)
    found = folder.lstat()
    if found.st_uid != os.geteuid():
        raise NotPrivate(f"{folder} belongs to another user, {_name(found.st_uid)}")
    if found.st_mode & _OTHERS_WRITE:
        raise NotPrivate(f"others may write to {folder} (mode {stat.S_IMODE(found.st_mode):o})")
    for parent in folder.parents:
        _refuse_replaceable(parent, folder)
    if found.st_mode & _OTHERS:  # others can reach what is in it
        _refuse_foreign(folder)
    with tempfile.TemporaryFile(dir=folder):
        pass
    return folder


def make(path: Path) -> None:
    """Makes the folder, and those above it that are missing, for this user alone. Raises
    OSError.
    """
    for each in reversed((path, *path.parents)):
        if not each.is_dir():
            each.mkdir(ONLY_OURS, exist_ok=True)


@functools.cache
def temporary_folder() -> Path:
    """Returns a folder of this process's own, under a name that nobody can foretell. It is removed
    when the process ends; if that was killed, by the next process that makes one.

    Raises NotPrivate, or OSError.
    """
    _remove_left()
    folder = Path(tempfile.mkdtemp(prefix="niyama-"))
    if _hold(folder) is not None:  # never before it is held has it a name that others look for
        folder = folder.rename(folder.with_name(folder.name + _HELD))
    # Environment variables that name it are the process's, and so is what it has loaded from there.
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return private_folder(folder)


def _remove_left() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"niyama-*{_HELD}"):
        held = _hold(folder)
        if held is not None:
            if os.fstat(held).st_uid == os.geteuid():
                shutil.rmtree(folder, ignore_errors=True)
            os.close(held)


def _hold(folder: Path) -> int | None:
    """Returns a descriptor that keeps the folder for this process until it ends, in whatever way.
    None where another process has it, or where the file system knows no locks.
    """
    try:
        held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(held)
        return None
    return held


def read(path: Path) -> str:
    """Returns the text of a file that only we, or the superuser, can have written. Raises OSError,
    or ValueError.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), encoding="utf-8") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise NotPrivate(f"{path} is no file")
        if not _is_trusted(found.st_uid) or found.st_mode & _OTHERS_WRITE:
            raise NotPrivate(f"others may write to {path}")
        return file.read()


def write(path: Path, text: str) -> None:
    """Writes the file in one piece, so that no reader sees half of it, and for us alone to read.
    Raises OSError.
    """
    make(path.parent)
    file = tempfile.NamedTemporaryFile("w", dir=path.parent, encoding="utf-8", delete=False)  # noqa: SIM115 - closed below
    try:
        with file:
            file.write(text)
        os.replace(file.name, path)
    except OSError:
        os.unlink(file.name)
        raise


def _refuse_link_of_another(path: Path) -> None:
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode) and not _is_trusted(found.st_uid):
        raise NotPrivate(f"{path} is a link of another user, {_name(found.st_uid)}")


def _refuse_replaceable(parent: Path, folder: Path) -> None:
    found = parent.lstat()
    if not _is_trusted(found.st_uid):
        raise NotPrivate(f"{parent}, in which {folder} is, belongs to {_name(found.st_uid)}")
    if found.st_mode & stat.S_ISVTX:
        return
    is_open = found.st_mode & stat.S_IWOTH
    is_for_group = found.st_mode & stat.S_IWGRP
    if is_open or (is_for_group and (_has_acl(parent) or not _is_own_group(found.st_gid))):
        raise NotPrivate(f"others may write to {parent}, in which {folder} is")


def _refuse_foreign(folder: Path) -> None:
    for path in _entries(folder):
        found = path.lstat()
        if found.st_uid != os.geteuid():
            raise NotPrivate(f"{path} belongs to another user, {_name(found.st_uid)}")
        if found.st_mode & _OTHERS_WRITE and not stat.S_ISLNK(found.st_mode):
            raise NotPrivate(f"others may write to {path}")


def _entries(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        yield from (Path(root, name) for name in (*folders, *files))


def _is_trusted(uid: int) -> bool:
    return uid in (os.geteuid(), 0, os.lstat("/").st_uid)


def _has_acl(path: Path) -> bool:
    """Returns whether the folder has an access control list. If it has, the mode's bits of the
    group are the most that anybody in the list may do, and those may be other users (acl(5)).
    """
    try:
        return "system.posix_acl_access" in os.listxattr(path)
    except OSError:  # there are none in such a file system
        return False


def _is_own_group(gid: int) -> bool:
    """Returns whether this is the user's own group, with nobody else in it, which many systems make
    with a user. There, all that the user makes may be written to by that group.
    """
    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    is_named_so = (group.gr_gid, group.gr_name) == (user.pw_gid, user.pw_name)
    return is_named_so and set(group.gr_mem) <= {user.pw_name}


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
