"""The sampling that a checkpoint's generation_config.json states, for requests that leave it out.

As in vLLM, what the file leaves out is neutral, and `max_new_tokens` is the length of requests that
state none and limits nobody. As in transformers, and unlike vLLM, `"do_sample": false` means
greedy, since the file says so. Its end-of-sequence ids are read by model_config.py. No torch here.
"""

from __future__ import annotations

import struct
from typing import Any

from engine.checkpoint.gguf.sampling import NOT_DONE
from engine.checkpoint.json_file import CheckpointError, Keys
from engine.checkpoint.model_config import GENERATION
from engine.checkpoint.source import Source
from engine.deciding.request import Sampling

_NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty")
_MOST = 1e30
# Keys that change what transformers generates, with the values that mean "not used".
_UNUSED: dict[str, tuple[object, ...]] = {
    "num_beams": (None, 1),
    "penalty_alpha": (None, 0),
    "typical_p": (None, 1),
    "epsilon_cutoff": (None, 0),
    "eta_cutoff": (None, 0),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "no_repeat_ngram_size": (None, 0),
    "bad_words_ids": (None, []),
    "suppress_tokens": (None, []),
    "begin_suppress_tokens": (None, []),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "sequence_bias": (None, {}, []),
    "exponential_decay_length_penalty": (None,),
    "stop_strings": (None, [], ""),
    "guidance_scale": (None, 1),
    "watermarking_config": (None,),
    # Of a GGUF file.
    **dict.fromkeys(NOT_DONE, (None, 0)),
}


def read_sampling(source: Source) -> Sampling:
    """Returns the sampling of a checkpoint; the engine's own defaults where it has no such file.

    Raises CheckpointError, naming file and key, for a value that no request could ask for.
    """
    where = source.place(GENERATION).name
    keys = Keys(source.json(GENERATION), where)
    given: dict[str, Any] = {
        name: _as_asked(keys.number(name, least=-_MOST, most=_MOST))
        for name in _NUMBERS
        if keys.states(name)
    }
    if keys.states("top_k"):
        given["top_k"] = keys.whole("top_k", least=0)
    if keys.states("max_new_tokens"):
        given["max_tokens"] = keys.whole("max_new_tokens")
    try:
        sampling = Sampling(**given)
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from error
    return sampling if keys.flag("do_sample", True) else Sampling(**given | {"temperature": 0.0})


def unused_keys(source: Source) -> list[str]:
    """Returns the keys by which the file asks for what the engine does not do. Raises
    CheckpointError.
    """
    raw = source.json(GENERATION)
    return [key for key, harmless in _UNUSED.items() if raw.get(key) not in harmless]


def _as_asked(value: float) -> float:
    """Returns the number as a request states it, whose floats have 32 bits. So a request that asks
    for the default changes nothing.
    """
    return float(struct.unpack("f", struct.pack("f", value))[0])
