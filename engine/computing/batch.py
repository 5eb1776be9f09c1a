"""From a plan to the tensors of one iteration: the flat batch.

An iteration computes tokens of many sequences at once, one for each that decodes and some of each
prompt. The model sees them as rows of one table, whichever sequence they belong to, for all that it
does to a token depends on that token alone; only attention is told who owns which rows. So nothing
is padded to the longest of the batch but what attention gathers.

The rows are the decodes, from the longest context to the shortest, then the prompts that are
computed together, then all other chunks, and padding last. (Where padding is computed as decodes
are, some of it follows these.) `rows` brings the sampled ones back to the plan's order. Everything
is written into lists of integers, which cross to the device as one tensor. Lengths are tokens.

On a CPU numbers of rows are rounded up to few (`rounded_up`): for every shape that a product has
for the first time oneDNN compiles code, which takes longer than many a product and stays in memory
(`python -m tests.bench products`).
"""

from __future__ import annotations

from collections.abc import Sequence as List
from dataclasses import dataclass

from torch import Tensor

from engine.computing.attention.layout import AttentionPlan, Decode, KvLayout
from engine.computing.attention.prompts import PrefillPlanner
from engine.computing.cpu import COARSEST_ROWS, NO_ROWS, exact_rows, rounded_up
from engine.computing.sampled import SampledTokens, token_to_decode
from engine.computing.transfer import columns_to_device
from engine.deciding.plan import Chunk, Plan
from engine.deciding.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch is the model's arguments for one iteration of T tokens, S of which are sampled; all
    are int64. Padding stands last, in T and in S.
    """

    tokens: Tensor  # [T]
    positions: Tensor  # [T]
    rows: Tensor  # [S], in the order of plan.sampling
    attention: AttentionPlan


@dataclass(slots=True)
class _Rows:
    """The rows of a batch, one for each token, as it is put together."""

    tokens: list[int]
    positions: list[int]
    slots: list[int]
    last_of: dict[Sequence, int]  # its last row

    def add(self, sequence: Sequence, start: int, tokens: List[int], slots: List[int]) -> None:
        """Adds tokens of a sequence, from position `start` on."""
        self.tokens += tokens
        self.positions += range(start, start + len(tokens))
        self.slots += slots
        self.last_of[sequence] = len(self.tokens) - 1

    def pad(self, padding: int, slot: int | None) -> None:
        """Adds rows of token 0, written to `slot` if at all."""
        self.tokens += [0] * padding
        self.positions += [0] * padding
        if slot is not None:
            self.slots += [slot] * padding


class BatchBuilder:
    """Builds the batches of one executor, for whichever layout its KV memory has."""

    def __init__(
        self,
        kv: KvLayout,
        least: int = 0,
        slow_rows: range = NO_ROWS,
        pads_prompts: bool | None = None,
    ) -> None:
        """Fewer than `least` tokens, or sampled rows, are padded to as many, but a lone token; and
        a number in `slow_rows` to the first beyond (autotune.py). For `pads_prompts` see
        PrefillPlanner.
        """
        self._kv = kv
        self._prefill = PrefillPlanner(
            kv.num_heads, kv.num_kv_heads, kv.dtype, kv.device, pads_prompts
        )
        self._least = least
        self._slow_rows = slow_rows
        self._is_cpu = kv.device.type == "cpu"
        self._sink = kv.sink * kv.page_size if kv.computes_padding else None
        self._exact = exact_rows(kv.dtype, kv.device)

    def build(self, plan: Plan, last: SampledTokens | None = None) -> Batch:
        """Builds the batch of a plan. `last` is what the launch before it sampled, for decodes
        whose token is in flight.
        """
        kv = self._kv
        sequences = sorted(plan.decodes, key=lambda s: -s.num_computed)
        decodes = [Decode(sequence, sequence.num_computed) for sequence in sequences]
        rows = _Rows(
            tokens=[token_to_decode(sequence) for sequence in sequences],
            positions=[position for _, position in decodes],
            slots=[slot for s, position in decodes for slot in kv.slots(s.pages, position, 1)],
            last_of={sequence: row for row, sequence in enumerate(sequences)},
        )
        for chunk in filter(kv.is_decode, plan.chunks):
            self._add_chunk(rows, chunk)
            decodes.append(Decode(chunk.sequence, chunk.start))
        chunks = [chunk for chunk in plan.chunks if not kv.is_decode(chunk)]
        padding = self._decode_padding(len(decodes), bool(chunks))
        rows.pad(padding, self._sink)
        prompts, others = self._prefill.ordered(chunks)
        for chunk in (*prompts, *others):
            self._add_chunk(rows, chunk)
        sampled = self._sampled(rows, plan)
        rows.pad(self._padded(len(rows.tokens)) - len(rows.tokens), self._sink)
        columns = (rows.tokens, rows.positions, rows.slots, sampled)
        tokens, positions, slots, of_sampled = columns_to_device(columns, kv.device)
        if last is not None:
            last.fill_in(tokens, sequences)
        first = len(decodes) + padding
        prefill = self._prefill.plan(prompts, others, first, kv.reader)
        attention = kv.plan(slots, decodes, padding, prefill)
        return Batch(tokens, positions, of_sampled, attention)

    def _add_chunk(self, rows: _Rows, chunk: Chunk) -> None:
        sequence, start, length, _ = chunk
        tokens = sequence.tokens(start, start + length)
        rows.add(sequence, start, tokens, self._kv.slots(sequence.pages, start, length))

    def _decode_padding(self, count: int, has_chunks: bool) -> int:
        """Returns how many rows are decoded beyond `count`: without chunks, all rows are."""
        if not self._kv.computes_padding:
            return 0
        return max(0, (self._least if has_chunks else self._padded(count)) - count)

    def _sampled(self, rows: _Rows, plan: Plan) -> list[int]:
        """Returns the rows that are sampled, and then padding."""
        sampled = [rows.last_of[sequence] for sequence in plan.sampling]
        if len(rows.tokens) > 1:
            return sampled + [0] * (self._without_slow(len(sampled)) - len(sampled))
        # A row too many where nothing is sampled: compiled code has no fewer.
        return [0] if self._least else sampled

    def _padded(self, count: int) -> int:
        """Returns the number of rows that so many are padded to; a lone one is not."""
        if count == 1:
            return 1
        count = self._without_slow(count)
        return rounded_up(count, self._exact, COARSEST_ROWS) if self._is_cpu else count

    def _without_slow(self, count: int) -> int:
        count = max(self._least, count)
        return self._slow_rows.stop if count in self._slow_rows else count
