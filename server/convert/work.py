"""How much work a request is, in tokens of its prompt and its output, over all completions.

Before the prompt is tokenized, its length is estimated from the size of the message. All the output
that is asked for counts, as nobody knows when it will end. A completion counts at most as many
tokens as the context holds.
"""

from __future__ import annotations

from engine.deciding.questions import Estimate
from engine.deciding.request import Share
from server.admission.places import Entry
from server.convert.inbound import Asked, Limits

BYTES_PER_TOKEN = 4  # of a message, as tokenizers are in English: an estimate, and bounded


def entry_of(asked: Asked, request_id: str, num_bytes: int, limits: Limits) -> Entry:
    """Returns what the ledger is told of a call whose message has `num_bytes`."""
    prompt_len = len(asked.input.token_ids) or num_bytes // BYTES_PER_TOKEN
    return Entry(
        asked.tenant,
        request_id,
        asked.share,
        asked.quality.tier,
        asked.quality.importance,
        asked.n,
        work(asked, prompt_len, limits),
    )


def entry_of_estimate(asked: Estimate, share: Share) -> Entry:
    """Returns what the ledger would be told of the request that the estimate is about. It has no
    id, so no other request's id is in its way.
    """
    output_len = asked.default_output_len if asked.output_len is None else asked.output_len
    tokens = asked.prompt_len + output_len
    return Entry(asked.tenant, "", share, asked.tier, asked.importance, 1, tokens)


def work(asked: Asked, prompt_len: int, limits: Limits) -> int:
    """Returns the tokens of all completions, with a prompt of that length."""
    default_len = limits.sampling.max_tokens
    output_len = default_len if asked.max_tokens is None else asked.max_tokens
    return asked.n * max(1, min(prompt_len + output_len, limits.context_len))
