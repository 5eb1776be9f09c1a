"""What is loaded and run lies where nobody else can have put it: with real folders and owners."""

from __future__ import annotations

import contextlib
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from engine import private
from engine.private import NotPrivate, private_folder

ANOTHER = 54321  # a user that no machine has
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(autouse=True)
def generous() -> object:
    """A umask that keeps nothing from anybody."""
    before = os.umask(0)
    yield
    os.umask(before)


def test_what_is_made_is_for_us_alone(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "niyama" / "compiled"
    assert private_folder(folder) == folder
    assert [mode_of(each) for each in (folder, *list(folder.parents)[:2])] == [0o700] * 3


def test_one_of_ours_is_taken_as_it_is(tmp_path: Path) -> None:
    for mode in (0o700, 0o755):
        (tmp_path / "cache").mkdir(exist_ok=True)
        (tmp_path / "cache").chmod(mode)
        assert private_folder(tmp_path / "cache") == tmp_path / "cache"
        assert mode_of(tmp_path / "cache") == mode


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o702, 0o720])
def test_one_that_others_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(NotPrivate, match=f"others may write to {folder} .mode {mode:o}"):
        private_folder(folder)


def test_one_in_a_folder_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    """They may put another in its place, unless each may remove only what is his own (sticky)."""
    folder = tmp_path / "shared" / "niyama" / "cache"
    private.make(folder)
    (tmp_path / "shared").chmod(0o777)
    with pytest.raises(NotPrivate, match=f"others may write to {tmp_path}/shared, in which"):
        private_folder(folder)
    (tmp_path / "shared").chmod(0o1777)
    assert private_folder(folder) == folder


@as_root
@pytest.mark.parametrize("mode", [0o700, 0o755, 0o777])
def test_one_of_another_user_is_refused(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(mode)
    os.chown(folder, ANOTHER, ANOTHER)
    with pytest.raises(NotPrivate, match="belongs to another user, 54321"):
        private_folder(folder)
    private.make(folder / "mine")
    with pytest.raises(NotPrivate, match=f"{folder}, in which .*mine is, belongs to 54321"):
        private_folder(folder / "mine")


@as_root
def test_a_folder_that_a_group_may_write_to_holds_none_of_ours(tmp_path: Path) -> None:
    folder = tmp_path / "of a group" / "cache"
    private.make(folder)
    (tmp_path / "of a group").chmod(0o2770)
    os.chown(tmp_path / "of a group", 0, ANOTHER)
    with pytest.raises(NotPrivate, match=r"others may write to .*of a group, in which"):
        private_folder(folder)


def may_be_written_to_by(uid: int, path: Path) -> None:
    """By an access control list, as setfacl -m u:UID:rwx makes it (linux/posix_acl_xattr.h)."""
    anybody = 0xFFFFFFFF
    owner, user, group, mask, others = 0x01, 0x02, 0x04, 0x10, 0x20
    entries = [(owner, 7, anybody), (user, 7, uid), (group, 5, anybody)]
    entries += [(mask, 7, anybody), (others, 0, anybody)]
    packed = b"".join(struct.pack("<HHI", *entry) for entry in entries)
    try:
        os.setxattr(path, "system.posix_acl_access", struct.pack("<I", 2) + packed)
    except OSError:
        pytest.skip("this file system has no access control lists")


def test_a_folder_that_a_list_lets_another_write_to_holds_none_of_ours(tmp_path: Path) -> None:
    """To the mode alone it is one of our own group's."""
    folder = tmp_path / "listed" / "cache"
    private.make(folder)
    may_be_written_to_by(ANOTHER, tmp_path / "listed")
    assert mode_of(tmp_path / "listed") == 0o770
    with pytest.raises(NotPrivate, match=r"others may write to .*listed, in which"):
        private_folder(folder)


@as_root
def test_a_link_of_another_user_is_refused(tmp_path: Path) -> None:
    """It leads wherever he wants at the moment: to a folder of ours when it is looked at."""
    (tmp_path / "ours").mkdir(0o700)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "ours")
    assert private_folder(link) == tmp_path / "ours"
    os.chown(link, ANOTHER, ANOTHER, follow_symlinks=False)
    for path in (link, link / "cache"):
        with pytest.raises(NotPrivate, match=f"{link} is a link of another user"):
            private_folder(path)


def by_another(path: Path) -> None:
    os.chown(path, ANOTHER, ANOTHER)


def writable(path: Path) -> None:
    path.chmod(0o666)


@pytest.mark.parametrize("foreign", [pytest.param(by_another, marks=as_root), writable])
def test_one_in_which_others_left_or_may_change_something_is_refused(
    tmp_path: Path, foreign: Callable[[Path], None]
) -> None:
    """Where they can reach it: in a folder that is closed to them nobody has."""
    folder = tmp_path / "cache"
    (folder / "fxgraph").mkdir(parents=True, mode=0o755)
    planted = folder / "fxgraph" / "pickle"
    planted.write_text("")
    planted.chmod(0o600)
    folder.chmod(0o755)
    (folder / "fxgraph").chmod(0o755)
    assert private_folder(folder) == folder
    foreign(planted)
    with pytest.raises(NotPrivate, match=str(planted)):
        private_folder(folder)


def test_a_file_in_its_place_is_an_error_and_no_crash(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    for path in (tmp_path / "file", tmp_path / "file" / "cache", tmp_path / "nowhere"):
        with pytest.raises(OSError, match=r"file|nowhere"):
            private_folder(path)


def test_what_is_written_is_ours_alone_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "profile.json"
    private.write(path, "one")
    private.write(path, "two")
    assert (mode_of(path), mode_of(path.parent)) == (0o600, 0o700)
    assert list(path.parent.iterdir()) == [path]
    assert private.read(path) == "two"


def test_what_others_may_have_written_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text("{}")
    path.chmod(0o602)
    with pytest.raises(NotPrivate):
        private.read(path)
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(NotPrivate, match="no file"):  # and nobody waits for a writer
        private.read(tmp_path / "fifo")


@as_root
def test_a_file_of_another_user_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text("{}")
    path.chmod(0o644)
    os.chown(path, ANOTHER, ANOTHER)
    with pytest.raises(NotPrivate):
        private.read(path)


def test_a_user_without_a_home_has_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    assert private.default_folder() == Path(os.environ["XDG_CACHE_HOME"]) / "niyama"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert private.default_folder() is None


def holder(temporary: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process that has a temporary folder among `temporary`, with something in it, until it is
    told to end; and that folder.
    """
    script = (
        "from engine.private import temporary_folder as f;"
        "(f() / 'kept').touch(); print(f(), flush=True); input()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, "TMPDIR": str(temporary)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    return child, Path(child.stdout.readline().strip())


def test_a_killed_process_leaves_its_temporary_folder_to_be_removed_by_the_next(
    tmp_path: Path,
) -> None:
    """An engine that was ended while it compiled left some megabytes among the temporary files."""
    tmp_path.chmod(0o700)
    with contextlib.ExitStack() as stack:
        killed, left = holder(tmp_path)
        stack.enter_context(killed)
        lives, kept = holder(tmp_path)
        stack.enter_context(lives)
        assert (left / "kept").exists()
        killed.kill()
        killed.wait(30)
        third, own = holder(tmp_path)
        stack.enter_context(third)
        assert not left.exists()
        assert (kept / "kept").exists()
        assert (own / "kept").exists()
        for child in (lives, third):
            child.communicate("\n", 30)
    assert list(tmp_path.iterdir()) == []
