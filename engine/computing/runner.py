"""The executor of plans: builds the batch, runs the model, samples.

One `launch` is one iteration. On CUDA it only queues the work, behind that of earlier launches, and
returns; what it has read of the plan may change from then on. It knows pages and tokens; what for,
and by when, it does not.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from engine.checkpoint.json_file import CheckpointError
from engine.checkpoint.model_config import ModelConfig
from engine.checkpoint.options import DTYPES, QUANTIZE, Choices
from engine.computing.attention.gathered import GatheredKv
from engine.computing.attention.in_place import InPlaceKv
from engine.computing.attention.layout import LEAST, KvLayout, pages_in
from engine.computing.autotune import fastest_dtype, fastest_row_layout, measured_slow_rows
from engine.computing.batch import Batch, BatchBuilder
from engine.computing.compiled import (
    CompilationFailed,
    CompiledStep,
    end_compilers,
    prepare,
)
from engine.computing.cpu import MOST_COPIED_BYTES, NO_ROWS, can_pack, uses_matrix_units
from engine.computing.graphs import Capture, CudaCapture, DecodeGraphs, gather_limit
from engine.computing.model import Decoder
from engine.computing.rotation import rotate
from engine.computing.sampled import Picked
from engine.computing.sampler import Sampler
from engine.computing.weights import check_weights, load_model, read_config
from engine.deciding.pages import PAGE_SIZE
from engine.deciding.plan import Chunk, Plan, Token, Work
from engine.deciding.request import Request, Sampling
from engine.deciding.sequence import Sequence

FORMATS = {name: getattr(torch, name) for name in DTYPES}
DEFAULT_KV_BYTES = 256 << 20
# Of a GPU's free memory, for weights and KV: the rest is for activations, the decode graphs and the
# allocator's slack.
GPU_SHARE = 0.85
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
    ) -> None:
        """With `or_eager` a model that cannot be compiled is run as it is: see `compile_note`.
        `slow_rows` are numbers of rows that are not computed, but some more; `row_layout` is how
        the matrices are laid out for a row by itself.
        """
        self.model = model
        self.config = model.config
        self.dtype = model.embedding.dtype
        self.device = kv.device
        self.compile_note = ""  # for the operator
        self._or_eager = or_eager
        self.slow_rows = slow_rows
        self._row_layout = row_layout
        self._gather_bytes = 0
        self._use(kv, compiled)
        self._sampler = Sampler()
        self._graphs: DecodeGraphs | None = None
        self._last: Picked | None = None  # by the newest launch: tokens in flight are among them

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
    ) -> None:
        """Decode iterations of up to so many sequences run as graphs from now on, as long as a
        layer gathers at most so many bytes. By default as this GPU does it, and has memory for.
        """
        if gather_bytes is None:
            gather_bytes = gather_limit(self.device)
        self._gather_bytes = gather_bytes
        self._graphs = DecodeGraphs(self.step, self.kv, capture or CudaCapture())
        with torch.inference_mode():
            self._graphs.capture(max_batch_size, context_len, gather_bytes)

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
        """One token for each sequence of `plan.sampling`, in that order."""
        return self.launch(plan).tokens()

    @torch.inference_mode()
    def launch(self, plan: Plan) -> Picked:
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
        """Logits [S, V] of one iteration."""
        if self._compiled is not None:
            return self._compiled(batch)
        return self.model(batch.tokens, batch.positions, batch.rows, batch.attention.attend)

    def warm_up(self) -> None:
        """Runs a prompt beside decodes, decodes and a lone one in page 0 on, before any sequence
        owns pages; compiles. Raises CompilationFailed.
        """
        failed = ""
        try:
            self._warm_up_all()
        except CompilationFailed as error:
            if not self._or_eager:
                raise CompilationFailed(f"--compile on: {error}") from error
            failed = str(error)
        finally:
            end_compilers()
        if failed:
            self._go_eager(f"not compiled: {failed}")
            self._warm_up_all()

    def _go_eager(self, note: str) -> None:
        self.compile_note = "; ".join(filter(None, (self.compile_note, note)))
        shape = (self.kv.num_pages, self.kv.page_size, self.kv.dtype, self.kv.device)
        del self.kv, self._compiled, self._builder  # not two memories at once
        self._use(GatheredKv(self.config, *shape), compiled=False)
        for linear in self.model.linears():
            linear.row = None  # for compiled code

    def _warm_up_all(self) -> None:
        """In each kind of iteration that compiled code has (compiled.py), of a size for which it is
        worth compiling well.
        """
        room = min(self.num_pages * self.page_size, self.config.max_positions)
        length = max(1, min(WARM, room - 1))
        prompt = self._warm_sequence(length)
        others = [
            self._warm_sequence(length, max(0, min(length, room - 1) - number))
            for number in range(WARM_DECODES)
        ]
        chunk = Chunk(prompt, 0, max(length, min(room, 2)), True)
        for decodes, chunks in ((others, (chunk,)), (others, ()), (others[:1], ())):
            self.run(_warm_up_plan(tuple(decodes), chunks))

    def _warm_sequence(self, length: int, num_computed: int = 0) -> Sequence:
        tokens = [0] * (length + 1)
        request = Request("warm-up", tokens, Sampling(temperature=0.0), arrived_at=0.0)
        pages = list(range(-(-(length + 1) // self.page_size)))[: self.num_pages]
        return Sequence(request, 0.0, pages=pages, num_computed=num_computed)


def _warm_up_plan(decodes: tuple[Sequence, ...] = (), chunks: tuple[Chunk, ...] = ()) -> Plan:
    return Plan(decodes, chunks, Work(), planned_at=0.0, predicted_s=0.0)


def load(
    folder: Path | str,
    *,
    device: str = "cpu",
    dtype: str = "auto",
    quantize: str = "none",
    compile: str = "off",
    compile_cache: Path | None = None,
    num_pages: int | None = None,
    kv_bytes: int | None = None,
    page_size: int = PAGE_SIZE,
    threads: int | None = None,
    chosen: Choices | None = None,
) -> ModelExecutor:
    """An executor for a checkpoint folder. Raises CheckpointError when it cannot be served, and
    ValueError for an option that this machine cannot follow.

    KV memory has `num_pages` pages, or as many as fit in `kv_bytes`, or in what the weights leave
    of a GPU's free memory; on a CPU a modest constant. `dtype` "auto" is measured on a CPU and the
    checkpoint's own elsewhere. `compile` is one of options.COMPILE. `threads` sets
    torch's number for the process. With `chosen` nothing is measured or chosen again.
    """
    folder, place = Path(folder), torch.device(device)
    if chosen is not None:
        dtype, num_pages, threads = chosen.dtype, chosen.num_pages, chosen.threads
        compile = compile if chosen.is_compiled else "off"
    if place.type == "cuda" and place.index is not None:
        torch.cuda.set_device(place)  # streams, events and graphs are of the current one
    if threads is not None:
        torch.set_num_threads(threads)
    is_compiled, note = prepare(compile, place, compile_cache)
    config = read_config(folder)
    check_weights(folder, config)  # before anything of the sizes that it states is measured
    torch_dtype = _dtype(dtype, config, device)
    free_bytes = _free_bytes(place)
    model = load_model(folder, torch_dtype, device)
    compiled_on_cpu = is_compiled and place.type == "cpu"
    row_layout = store(
        model, quantize, compiled_on_cpu, None if chosen is None else chosen.row_layout
    )
    if num_pages is None:
        if not kv_bytes and place.type == "cuda":
            kv_bytes = kv_share(free_bytes, _free_bytes(place))
        num_pages = pages_in(kv_bytes or DEFAULT_KV_BYTES, config, page_size, torch_dtype)
    kind = InPlaceKv if compiled_on_cpu else GatheredKv
    kv = _allocated(kind, config, num_pages, page_size, torch_dtype, device)
    if chosen is not None:
        slow_rows = range(*chosen.slow_rows)
    else:
        slow_rows = measured_slow_rows(model) if uses_matrix_units(torch_dtype, place) else NO_ROWS
    executor = ModelExecutor(model, kv, is_compiled, compile == "auto", slow_rows, row_layout)
    executor.compile_note = note if chosen is None or is_compiled else chosen.compile_note
    return executor


def _allocated(
    kind: type[InPlaceKv | GatheredKv],
    config: ModelConfig,
    num_pages: int,
    page_size: int,
    dtype: torch.dtype,
    device: str,
) -> KvLayout:
    """Raises CheckpointError where there is no memory for it."""
    try:
        return kind(config, num_pages, page_size, dtype, device)
    except RuntimeError as error:  # torch.OutOfMemoryError, or the CPU allocator's
        raise CheckpointError(
            f"no memory for {num_pages} pages of {page_size} tokens of KV memory:"
            f" {str(error).splitlines()[0]}"
        ) from error


def _free_bytes(device: torch.device) -> int:
    """Of a GPU's memory; 0 elsewhere."""
    if device.type != "cuda":
        return 0
    torch.cuda.empty_cache()  # what storing the weights needed for a moment
    return torch.cuda.mem_get_info(device)[0]


def kv_share(before: int, after: int) -> int:
    """Bytes for KV memory on a GPU, of those that were free before and after the weights, in
    whatever format, were loaded.
    """
    return max(after - int((1 - GPU_SHARE) * before), DEFAULT_KV_BYTES)


def store(
    model: Decoder,
    quantize: str = "none",
    with_rows: bool = False,
    chosen: str | None = None,
) -> str:
    """The model's matrices as its device reads them fastest, or in `quantize` "int8"; of a small
    model once more for a row by itself, if asked and if that is faster. Returns the layout for a
    row, which is `chosen` where one was chosen before.
    """
    if quantize not in QUANTIZE:
        raise ValueError(f"quantize must be one of {', '.join(QUANTIZE)}, got {quantize!r}")
    dtype, row_layout = model.embedding.dtype, "packed"
    is_small = model.config.num_parameters * dtype.itemsize <= MOST_COPIED_BYTES
    if with_rows and is_small and quantize != "int8" and can_pack(dtype):
        row_layout = chosen or fastest_row_layout(model.config, dtype)
    with torch.inference_mode():
        if quantize == "int8":
            rotate(model)
        for linear in model.linears():
            if quantize == "int8":
                linear.quantize()
            else:
                linear.pack(row_layout)
    return row_layout


def _dtype(name: str, config: ModelConfig, device: str) -> torch.dtype:
    if name == "auto":
        return fastest_dtype(config) if device == "cpu" else FORMATS[config.dtype]
    if name not in DTYPES:
        raise CheckpointError(f"dtype {name!r} is not supported (auto, {', '.join(DTYPES)} are)")
    return FORMATS[name]
