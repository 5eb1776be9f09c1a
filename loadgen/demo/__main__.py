"""`python -m loadgen.demo`; `loadgen.demo.command` says what it does."""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """As `loadgen.demo.command.main`. What that imports takes seconds, in which a Ctrl-C ends this
    process without a word: nothing has been started yet.
    """
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from loadgen.demo import command

    return command.main()


if __name__ == "__main__":
    sys.exit(main())
