"""Makes the executor of a checkpoint, with what this machine computes it fastest by.

On a CPU much is chosen by measurement, in a second or two (autotune.py): the dtype, the layout of
the matrices, which numbers of rows are worth avoiding. On a GPU what is left of its memory is
measured. All that was chosen can be told (`ModelExecutor.choices`), so that a later load of the
same model takes it as it is and measures nothing. Sizes are bytes.
"""

from __future__ import annotations

from pathlib import Path

import torch

from engine.checkpoint.json_file import CheckpointError
from engine.checkpoint.model_config import ModelConfig
from engine.checkpoint.opening import open_source
from engine.checkpoint.options import DTYPES, QUANTIZE, Choices
from engine.computing.attention.gathered import GatheredKv
from engine.computing.attention.in_place import InPlaceKv
from engine.computing.attention.layout import KvLayout, pages_in
from engine.computing.autotune import fastest_dtype, fastest_row_layout, measured_slow_rows
from engine.computing.compiler import prepare
from engine.computing.cpu import MOST_COPIED_BYTES, NO_ROWS, can_pack, uses_matrix_units
from engine.computing.model import Decoder
from engine.computing.rotation import rotate
from engine.computing.runner import ModelExecutor
from engine.computing.weights import check_weights, load_model
from engine.deciding.pages import PAGE_SIZE

FORMATS: dict[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPES}
DEFAULT_KV_BYTES = 256 << 20
# Of a GPU's free memory, for weights and KV: the rest is for activations, the decode graphs and the
# allocator's slack.
GPU_SHARE = 0.85


def load(
    path: Path | str,
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
    """Makes the executor of the checkpoint at a path. Raises CheckpointError when it cannot be
    served, and ValueError for an option that this machine cannot follow.

    KV memory has `num_pages` pages, or as many as fit in `kv_bytes`, or in what the weights leave
    of a GPU's free memory; on a CPU a modest constant. `dtype` "auto" is measured on a CPU and the
    checkpoint's own elsewhere. `compile` is one of options.COMPILE. `threads` sets torch's number
    for the process. With `chosen` nothing is measured or chosen again.
    """
    source, place = open_source(Path(path)), torch.device(device)
    if chosen is not None:
        dtype, num_pages, threads = chosen.dtype, chosen.num_pages, chosen.threads
        compile = compile if chosen.is_compiled else "off"
    _set_up(place, threads)
    is_compiled, note = prepare(compile, place, compile_cache)
    config = source.model_config()
    check_weights(source, config)  # before anything of the sizes that it states is measured
    torch_dtype = _dtype(dtype, config, device)
    free = free_bytes(place)
    model = load_model(source.path, torch_dtype, device)
    reads_in_place = is_compiled and place.type == "cpu"
    row_layout = _row_layout(model, quantize, reads_in_place, chosen)
    store(model, quantize, row_layout)
    if num_pages is None:
        kv_bytes = kv_bytes or kv_share(free, free_bytes(place))
        num_pages = pages_in(kv_bytes, config, page_size, torch_dtype)
    return ModelExecutor(
        model,
        _allocated(reads_in_place, config, num_pages, page_size, torch_dtype, place),
        is_compiled,
        or_eager=compile == "auto",
        slow_rows=_slow_rows(model, chosen),
        row_layout=row_layout,
        compile_note=note if chosen is None or is_compiled else chosen.compile_note,
    )


def _set_up(device: torch.device, threads: int | None) -> None:
    """Makes this device the process's current one, and this torch's number of threads."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # streams, events and graphs are of the current one
    if threads is not None:
        torch.set_num_threads(threads)


def _dtype(name: str, config: ModelConfig, device: str) -> torch.dtype:
    """Returns the dtype of this name. Raises CheckpointError for one that is not supported."""
    if name == "auto":
        return fastest_dtype(config) if device == "cpu" else FORMATS[config.dtype]
    if name not in DTYPES:
        raise CheckpointError(f"dtype {name!r} is not supported (auto, {', '.join(DTYPES)} are)")
    return FORMATS[name]


def _row_layout(
    model: Decoder, quantize: str, decodes_compiled: bool, chosen: Choices | None
) -> str:
    """Chooses the layout (linear.py) of the matrices that a row by itself is multiplied with.
    Another than packed is a second copy, for compiled code alone, and for small models.
    """
    dtype = model.embedding.dtype
    is_small = model.config.num_parameters * dtype.itemsize <= MOST_COPIED_BYTES
    if not (decodes_compiled and is_small and quantize == "none" and can_pack(dtype)):
        return "packed"
    return fastest_row_layout(model.config, dtype) if chosen is None else chosen.row_layout


def _slow_rows(model: Decoder, chosen: Choices | None) -> range:
    """Returns the numbers of rows that are worth being padded to the first number beyond."""
    if chosen is not None:
        return range(*chosen.slow_rows)
    if uses_matrix_units(model.embedding.dtype, model.embedding.device):
        return measured_slow_rows(model)
    return NO_ROWS


def store(model: Decoder, quantize: str = "none", row_layout: str = "packed") -> None:
    """Stores the model's matrices, which are plain, as its device reads them fastest, with a copy
    in `row_layout` for a row by itself if that is another; or, with `quantize` "int8", in 8 bits.
    Raises ValueError where `quantize` is none of options.QUANTIZE.
    """
    if quantize not in QUANTIZE:
        raise ValueError(f"quantize must be one of {', '.join(QUANTIZE)}, got {quantize!r}")
    with torch.inference_mode():
        if quantize == "int8":
            rotate(model)
        for linear in model.linears():
            if quantize == "int8":
                linear.quantize()
            else:
                linear.pack(row_layout)


def free_bytes(device: torch.device) -> int:
    """Returns the bytes of a GPU's memory that are free; 0 for another device."""
    if device.type != "cuda":
        return 0
    torch.cuda.empty_cache()  # what storing the weights needed for a moment
    return torch.cuda.mem_get_info(device)[0]


def kv_share(before: int, after: int) -> int:
    """Returns the bytes for KV memory on a GPU, given those that were free before and after the
    weights, in whatever format, were loaded; at least DEFAULT_KV_BYTES.
    """
    return max(after - int((1 - GPU_SHARE) * before), DEFAULT_KV_BYTES)


def _allocated(
    reads_in_place: bool,
    config: ModelConfig,
    num_pages: int,
    page_size: int,
    dtype: torch.dtype,
    device: torch.device,
) -> KvLayout:
    """Allocates the KV memory. Raises CheckpointError where this machine has not enough for it."""
    layout = InPlaceKv if reads_in_place else GatheredKv
    try:
        return layout(config, num_pages, page_size, dtype, device)
    except RuntimeError as error:  # torch.OutOfMemoryError, or the CPU allocator's
        raise CheckpointError(
            f"no memory for {num_pages} pages of {page_size} tokens of KV memory:"
            f" {str(error).splitlines()[0]}"
        ) from error
