"""The sampling that a GGUF file recommends (`general.sampling.*`), as a generation_config.json
would state it.
"""

from __future__ import annotations

from typing import Any

from engine.checkpoint.gguf.header import Header

_PREFIX = "general.sampling."
_MOST = 1e30
_NUMBERS = {
    "temp": "temperature",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}
NOT_DONE = ("general.sampling.mirostat", "general.sampling.xtc_probability")


def generation(header: Header) -> dict[str, Any]:
    """Returns what a generation_config.json would state; what NOT_DONE has keeps its name.
    Raises CheckpointError for what is no number.
    """
    keys = header.keys
    found: dict[str, Any] = {
        name: keys.number(_PREFIX + key, least=-_MOST, most=_MOST)
        for key, name in _NUMBERS.items()
        if keys.states(_PREFIX + key)
    }
    if keys.states(_PREFIX + "top_k"):
        found["top_k"] = keys.whole(_PREFIX + "top_k", least=0)
    return found | {key: header.metadata[key] for key in NOT_DONE if keys.states(key)}
