"""`python -m loadgen` runs `loadgen.cli`; its `--help` says more."""

import sys

from loadgen.cli import main

if __name__ == "__main__":
    sys.exit(main())
