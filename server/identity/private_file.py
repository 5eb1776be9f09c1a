"""Files that hold secrets: others may neither read nor change them, and their group not change
them.
"""

from __future__ import annotations

import stat
from pathlib import Path

from engine.toml_file import contents

FORBIDDEN = stat.S_IRWXO | stat.S_IWGRP


def read(path: Path, option: str, most_bytes: int, is_secret: bool = True) -> bytes:
    """Returns what a file holds, of which `option` is the flag that names it. Raises ValueError,
    with one line that names both, for a file that cannot be read, is longer, or keeps no secret
    though it is one.
    """
    try:
        found, state = contents(path, most_bytes + 1)
    except OSError as error:
        raise ValueError(f"{option} {path}: {error.strerror}") from error
    except ValueError as error:  # a path with a null character
        raise ValueError(f"{option} {path!r}: {error}") from error
    mode = stat.S_IMODE(state.st_mode)
    if is_secret and mode & FORBIDDEN:
        raise ValueError(
            f"{option} {path}: others may read or change it (mode {mode:04o}): chmod 600"
        )
    if len(found) > most_bytes:
        raise ValueError(f"{option} {path}: has more than {most_bytes} bytes")
    return found
