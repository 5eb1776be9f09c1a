"""`make demo` shows a server, one completion as it streams, and a mixed-tier load test."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from loadgen import interrupts
from loadgen.cli import main as loadgen_main
from loadgen.targets import local_server
from loadgen.targets.target import Unreachable
from niyama.client.__main__ import main as client_main
from niyama.client.terminal import discard_output

PROMPT = "In the beginning"
SAMPLE = ("--tier", "interactive", "--max-tokens", "64", "--temperature", "0.7", "--seed", "1")
LOAD = ("--rps", "40", "--mix", "interactive:0.6", "--duration", "12", "--drain", "30")


def main(
    argv: Sequence[str] | None = None,
    load: Sequence[str] = LOAD,
    server: str = local_server.MODULE,
) -> int:
    """Runs the demo and returns the exit status: 0 where all three parts of it worked.

    `argv` are flags of `python -m server`, or of another module `server` that is started like it;
    `load` are flags of `python -m loadgen`.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    print(
        "starting a server; the first start measures and compiles the model, which may take"
        f" minutes (it is given {local_server.START_TIMEOUT_S / 60:g})",
        file=sys.stderr,
    )
    try:
        with (
            interrupts.handled(interrupts.interrupt),
            local_server.serving(arguments, server) as address,
        ):
            print(f"server ready on {address}\n\n> {PROMPT}", flush=True)
            if failed := client_main([PROMPT, *SAMPLE, "--server", address]):
                return failed
            print(f"\n$ python -m loadgen {' '.join(load)}", flush=True)
            return loadgen_main([*load, "--target", address])
    except Unreachable as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # of standard output
        discard_output()
        print(f"demo: standard output: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        return interrupts.exit_status(interrupts.number_of(error))


if __name__ == "__main__":
    sys.exit(main())
