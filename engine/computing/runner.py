"""The executor of plans: builds the batch, runs the model, samples.

One `launch` is one iteration. On CUDA it only queues the work, behind that of earlier launches, and
returns; what it has read of the plan may change from then on. It knows pages and tokens; what for,
and by when, it does not.

Look-ahead. So that a GPU never waits for its host, an iteration is launched on it before the tokens
of the one before have come to the host. A sequence may then decode a token in flight, known on the
device alone. Positions, pages and context lengths do not depend on which token it is: the host
builds the batch without it, and the device copies it into the batch from what it sampled before
(`SampledTokens.fill_in`). If the token turns out to end its request, the next iteration has
computed for nobody, and the scheduler drops the result.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from engine.checkpoint.options import Choices
from engine.computing.attention.gathered import GatheredKv
from engine.computing.attention.layout import LEAST, KvLayout
from engine.computing.batch import Batch, BatchBuilder
from engine.computing.compiled import CompiledStep
from engine.computing.compiler import CompilationFailed, end_compilers
from engine.computing.cpu import NO_ROWS
from engine.computing.graphs import Bucket, Capture, CudaCapture, DecodeGraphs, gather_limit
from engine.computing.model import Decoder
from engine.computing.sampled import SampledTokens
from engine.computing.sampler import Sampler
from engine.deciding.plan import Chunk, Plan, Token, Work
from engine.deciding.request import Request, Sampling
from engine.deciding.sequence import Sequence

WARM, WARM_DECODES = 64, 8  # tokens of a prompt that warms up, and how many decode at once


class ModelExecutor:
    """Implements engine.deciding.plan.Executor with a model and its KV memory on one device."""

    def __init__(
        self,
        model: Decoder,
        kv: KvLayout,
        compiled: bool = False,
        or_eager: bool = False,
        slow_rows: range = NO_ROWS,
        row_layout: str = "packed",
        compile_note: str = "",
    ) -> None:
        """With `or_eager` a model that cannot be compiled is run as it is. `slow_rows` are numbers
        of rows that take longer than the first number beyond, to which they are padded;
        `row_layout` is how the matrices are laid out for a row by itself; `compile_note` says to
        the operator why it is not compiled as asked.
        """
        self.model = model
        self.config = model.config
        self.dtype = model.embedding.dtype
        self.device = kv.device
        self.compile_note = compile_note
        self._or_eager = or_eager
        self.slow_rows = slow_rows
        self._row_layout = row_layout
        self._gather_bytes = 0
        self._use(kv, compiled)
        self._sampler = Sampler()
        self._graphs: DecodeGraphs | None = None
        self._last: SampledTokens | None = None  # by the newest launch: some may be in flight

    def _use(self, kv: KvLayout, compiled: bool) -> None:
        self.kv = kv
        self._compiled = CompiledStep(self.model, kv) if compiled else None
        self._builder = BatchBuilder(kv, LEAST if compiled else 0, self.slow_rows)

    def capture_decodes(
        self,
        max_batch_size: int,
        context_len: int,
        capture: Capture | None = None,
        gather_bytes: int | None = None,
    ) -> list[Bucket]:
        """Has decode iterations of up to so many sequences run as graphs from now on, as long as a
        layer gathers at most so many bytes. `capture` and `gather_bytes` are by default how this
        GPU captures, and what it has memory for. Returns the shapes that were captured, in order.
        """
        if gather_bytes is None:
            gather_bytes = gather_limit(self.device)
        self._gather_bytes = gather_bytes
        self._graphs = DecodeGraphs(self.step, self.kv, capture or CudaCapture())
        with torch.inference_mode():
            return self._graphs.capture(max_batch_size, context_len, gather_bytes)

    @property
    def is_compiled(self) -> bool:
        return self._compiled is not None

    @property
    def choices(self) -> Choices:
        """What a later load of the same model is given, so that it becomes the same."""
        return Choices(
            device=str(self.device),
            dtype=str(self.dtype).removeprefix("torch."),
            is_compiled=self.is_compiled,
            compile_note=self.compile_note,
            row_layout=self._row_layout,
            slow_rows=(self.slow_rows.start, self.slow_rows.stop),
            threads=torch.get_num_threads(),
            num_pages=self.num_pages,
            gather_bytes=self._gather_bytes,
        )

    @property
    def compilations(self) -> int:
        """How often torch.compile ran; after `warm_up` it has no reason to run again."""
        return 0 if self._compiled is None else self._compiled.compilations

    @property
    def num_pages(self) -> int:
        return self.kv.num_pages

    @property
    def page_size(self) -> int:
        return self.kv.page_size

    def run(self, plan: Plan) -> list[Token]:
        """Computes a plan, waits, and returns a token for each of `plan.sampling`, in order."""
        return self.launch(plan).tokens()

    @torch.inference_mode()
    def launch(self, plan: Plan) -> SampledTokens:
        """Starts to compute a plan, behind what was launched before."""
        if plan.cleared:
            self.kv.clear(plan.cleared)
        logits = None
        if self._graphs is not None and not plan.chunks:
            logits = self._graphs.run(plan.decodes, self._last)
        if logits is None:
            logits = self.step(self._builder.build(plan, self._last))
        sampling = plan.sampling
        self._last = self._sampler.sample(logits[: len(sampling)], sampling)
        return self._last

    def step(self, batch: Batch) -> Tensor:
        """Computes the logits [S, V] of one iteration."""
        if self._compiled is not None:
            return self._compiled(batch)
        return self.model(batch.tokens, batch.positions, batch.rows, batch.attention.attend)

    def warm_up(self) -> None:
        """Runs each kind of iteration once, before any sequence owns pages; compiles. Raises
        CompilationFailed.
        """
        failed = ""
        try:
            self._run_warm_up_plans()
        except CompilationFailed as error:
            if not self._or_eager:
                raise CompilationFailed(f"--compile on: {error}") from error
            failed = str(error)
        finally:
            end_compilers()
        if failed:
            self._go_eager(f"not compiled: {failed}")
            self._run_warm_up_plans()
        elif self._compiled is not None:
            self._tell(self._compiled.note)

    def _run_warm_up_plans(self) -> None:
        for plan in warm_up_plans(self.num_pages, self.page_size, self.config.max_positions):
            self.run(plan)

    def _tell(self, note: str) -> None:
        """Adds to `compile_note` what is not there yet."""
        if note not in self.compile_note:
            self.compile_note = "; ".join(filter(None, (self.compile_note, note)))

    def _go_eager(self, note: str) -> None:
        self._tell(note)
        shape = (self.kv.num_pages, self.kv.page_size, self.kv.dtype, self.kv.device)
        del self.kv, self._compiled, self._builder  # not two memories at once
        self._use(GatheredKv(self.config, *shape), compiled=False)
        for linear in self.model.linears():
            linear.row = None  # for compiled code


def warm_up_plans(num_pages: int, page_size: int, max_positions: int) -> Iterator[Plan]:
    """Yields a plan for each kind of iteration that compiled code has (compiled.py), of a size for
    which it is worth compiling well: a prompt beside decodes, decodes, and a lone one. All use the
    pages from 0 on.
    """
    room = min(num_pages * page_size, max_positions)
    length = max(1, min(WARM, room - 1))
    pages = list(range(-(-(length + 1) // page_size)))[:num_pages]
    prompt = _warm_up_sequence(length, pages)
    decodes = tuple(
        _warm_up_sequence(length, pages, max(0, min(length, room - 1) - number))
        for number in range(WARM_DECODES)
    )
    chunk = Chunk(prompt, 0, max(length, min(room, 2)), True)
    yield _warm_up_plan(decodes, (chunk,))
    yield _warm_up_plan(decodes)
    yield _warm_up_plan(decodes[:1])


def _warm_up_sequence(length: int, pages: list[int], num_computed: int = 0) -> Sequence:
    request = Request("warm-up", [0] * (length + 1), Sampling(temperature=0.0), arrived_at=0.0)
    return Sequence(request, 0.0, pages=list(pages), num_computed=num_computed)


def _warm_up_plan(decodes: tuple[Sequence, ...], chunks: tuple[Chunk, ...] = ()) -> Plan:
    return Plan(decodes, chunks, Work(), planned_at=0.0, predicted_s=0.0)
