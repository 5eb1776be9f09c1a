"""`python -m server`: see `--help`."""

from __future__ import annotations

import signal
import sys


def main(argv: list[str] | None = None) -> int:
    """As `server.command.main`. What that imports takes seconds, in which a terminal that closes,
    or whoever wants the configuration read again, would end this process.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    from server import command

    return command.main(sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
