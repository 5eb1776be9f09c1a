r"""How a text is cut into words before byte-level BPE, by the names that GGUF files have for it.

A file states no rule but a name (`tokenizer.ggml.pre`), which llama.cpp gives to tokenizers that
cut alike. What each stands for is in its `src/llama-vocab.cpp`; here it is written as the
tokenizer.json of the models concerned has it, with which transformers cuts. Names of which no rule
is known here are refused, rather than served wrong. The lists are of steps, each of which cuts what
the ones before have left, as tokenizers' `pre_tokenizers` do.
"""

from __future__ import annotations

from typing import Any

_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = [rf"{_ENDINGS}|{_LETTERS}|\p{{N}}{{1,3}}|{_REST}"]
_WORDS = [_GPT2]
_QWEN2 = [rf"{_ENDINGS}|{_LETTERS}|\p{{N}}|{_REST}"]
_DIGITS = [r"\p{N}", _GPT2]
_DEFAULT = [r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"]
# Of which a word that is a token as a whole becomes that, whatever its merges say, and of which a
# text begins with the beginning-of-sequence token, if the file does not say otherwise.
_WHOLE = ("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "tekken")
_COMPOSED = ("qwen2", "deepseek-r1-qwen")  # of which texts are brought into the form NFC first
SPLITS: dict[str, list[str]] = {
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral"), _LLAMA3),
    **dict.fromkeys(("dbrx", "smaug-bpe"), _LLAMA3),
    **dict.fromkeys(_COMPOSED, _QWEN2),
    **dict.fromkeys(("megrez", "stablelm2"), _QWEN2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "minerva-7b"), _DIGITS),
    **dict.fromkeys(("gpt-2", "phi-2", "mellum", "olmo", "trillion", "a.x-4.0"), _WORDS),
    "tekken": [_TEKKEN],
    "default": _DEFAULT,
}


def normalizer(name: str) -> dict[str, Any] | None:
    """Returns what changes a text before it is cut."""
    return {"type": "NFC"} if name in _COMPOSED else None


def pre_tokenizer(name: str) -> dict[str, Any]:
    """Returns what cuts a text, and then has each byte written as a character."""
    steps: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": rule}, "behavior": "Isolated", "invert": False}
        for rule in SPLITS[name]
    ]
    last = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {"type": "Sequence", "pretokenizers": [*steps, last | {"use_regex": False}]}


def ignores_merges(name: str) -> bool:
    """Returns whether a word that is a token as a whole becomes that."""
    return name in _WHOLE


def adds_bos(name: str) -> bool:
    """Returns whether a text begins with that token where the file does not say."""
    return name in _WHOLE
