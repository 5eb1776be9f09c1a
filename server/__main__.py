"""`python -m server`: see `--help`."""

from __future__ import annotations

import os
import signal
import sys

# gRPC reads it when it is imported. Else it writes a line of its own form to stderr for each
# handshake that fails and each header that it cannot read, and so whoever reaches the port fills
# the log. What is an error to it and concerns us it raises.
VERBOSITY, QUIET = "GRPC_VERBOSITY", "NONE"


def main(argv: list[str] | None = None) -> int:
    """As `server.command.main`. What that imports takes seconds, in which a terminal that closes,
    or whoever wants the configuration read again, would end this process.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.environ.setdefault(VERBOSITY, QUIET)
    from server import command

    return command.main(sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
