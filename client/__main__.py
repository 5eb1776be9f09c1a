"""The command of `niyama.client.__main__`, by the name of its folder."""

import sys

from niyama.client.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
