"""A door: a socket pair over which one process hands sockets to another.

A parent that has made a connection gives its child the far end so; the near end may be its own, or
another child's.
"""

from __future__ import annotations

import errno
import os
import socket


def hand_in(door: socket.socket, sock: socket.socket) -> None:
    """Gives the process behind the door a socket of its own to the same connection. Raises OSError
    where that process is gone.
    """
    socket.send_fds(door, [b"\0"], [sock.fileno()])


def let_in(door: socket.socket) -> socket.socket:
    """Returns the next socket that was handed in. Raises EOFError where nobody can hand in another,
    and OSError where this process has no room for one: then it is closed.
    """
    data, fds, _, _ = socket.recv_fds(door, 1, 1)
    if not data:
        raise EOFError("nobody is before the door")
    if not fds:  # the system drops what a process has no room for
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return socket.socket(fileno=fds[0])
