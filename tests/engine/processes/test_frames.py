"""Messages arrive whole and in order, however their bytes are split."""

from __future__ import annotations

import socket

from hypothesis import given
from hypothesis import strategies as st

from engine.processes.frames import Unpacker, pack, receive


@given(st.lists(st.binary(max_size=40), max_size=8), st.data())
def test_messages_survive_any_split_of_the_stream(bodies: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(map(pack, bodies))
    unpacker, received = Unpacker(), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        received += unpacker.feed(stream[:size])
        stream = stream[size:]
    assert received == bodies


def test_the_first_message_is_read_and_what_follows_is_left() -> None:
    """Another reader takes the socket over: a front end's event loop, the engine's loop."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(pack("first") + pack(["second"]))
        assert receive(theirs) == "first"
        assert receive(theirs) == ["second"]
