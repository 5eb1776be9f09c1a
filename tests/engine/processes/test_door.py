"""A socket that is handed in through a door is the same connection on the other side."""

from __future__ import annotations

import errno
import os
import resource
import socket

import pytest

from engine.processes.door import hand_in, let_in


def test_what_is_handed_in_is_connected_though_its_sender_closes_it() -> None:
    door, inside = socket.socketpair()
    near, far = socket.socketpair()
    with door, inside, near:
        with far:
            hand_in(door, far)
        with let_in(inside) as handed:
            near.sendall(b"hello")
            assert handed.recv(5) == b"hello"
        assert near.recv(1) == b""


def test_a_door_before_which_nobody_is_left_says_so() -> None:
    door, inside = socket.socketpair()
    with inside:
        door.close()
        with pytest.raises(EOFError):
            let_in(inside)


def test_a_process_without_room_for_another_socket_loses_that_one_and_no_more() -> None:
    door, inside = socket.socketpair()
    near, far = socket.socketpair()
    with door, inside, near:
        with far:
            hand_in(door, far)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        try:
            with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
                let_in(inside)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert near.recv(1) == b""
