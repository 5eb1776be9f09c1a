"""`--until-eof`: a server that another program starts ends with it, however that one ends."""

from __future__ import annotations

from pathlib import Path

import psutil

from niyama.client import Client
from tests.server_process import EXIT_S, ServerProcess


def test_the_end_of_standard_input_drains(tmp_path: Path) -> None:
    """Which the system closes with whoever holds its other end. Tests start all servers so."""
    with ServerProcess(tmp_path / "log", module="tests.null_server") as process:
        process.wait_ready()
        children = psutil.Process(process.child.pid).children()
        with Client(process.address) as client:
            assert client.generate("Once", max_tokens=3).read()
        assert process.child.stdin is not None
        process.child.stdin.close()
        assert process.wait_exit() == 0
        assert not psutil.wait_procs(children, EXIT_S)[1]
        assert '"event": "draining"' in process.log
