"""What attention costs on this machine by the fused kernel, by products written out, and of decodes
in compiled code that reads their pages in place.

    python -m tests.bench attention [--threads 1] [--heads 9] [--kv-heads 3] [--dim 64]

One layer of the shape given (SmolLM2-135M's by default), its pages scattered over the memory,
gathering and writing included. A CPU with a compiler decodes in compiled code; else, and for
chunks, the engine takes products in bfloat16 on a CPU without matrix units (AMX), where they are
large. With them the fused kernel is given prompts of nearly 64 tokens `padded` to 64. Milliseconds,
medians, the arms in turn. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch

from engine.checkpoint.model_config import ModelConfig
from engine.computing.attention.gathered import GatheredKv
from engine.computing.attention.in_place import InPlaceKv
from engine.computing.batch import BatchBuilder
from engine.computing.compiler import compiler_missing
from engine.computing.cpu import fused_kernel_uses_matrix_units
from engine.deciding.plan import Chunk, Plan, Work
from engine.deciding.request import Request, Sampling
from engine.deciding.sequence import Sequence as Served

PAGE = 16
# (decodes, their context) or (start, length) of a chunk
DECODES = ((1, 200), (1, 2000), (8, 200), (64, 200), (64, 2000))
CHUNKS = ((0, 128), (0, 512), (0, 2048), (1536, 512))
PROMPTS = ((8, 20), (8, 34), (8, 44), (8, 57))  # so many of that length


def _plan(lengths: list[tuple[int, int]], is_chunk: bool) -> Plan:
    """Sequences of (computed, new) tokens, on shuffled pages."""
    counts = [-(-(start + new) // PAGE) for start, new in lengths]
    pages = list(range(sum(counts)))
    random.Random(1).shuffle(pages)
    sequences = []
    for (start, new), count in zip(lengths, counts, strict=True):
        request = Request("", [0] * (start + new), Sampling(), 0.0)
        sequences.append(Served(request, 0.0, pages=pages[:count], num_computed=start))
        pages = pages[count:]
    chunks = [
        Chunk(s, start, new, True) for s, (start, new) in zip(sequences, lengths, strict=True)
    ]
    decodes = () if is_chunk else tuple(sequences)
    return Plan(decodes, tuple(chunks) if is_chunk else (), Work(), 0.0, 0.0)


def _medians(arms: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(repeats + 2):
        for name, arm in arms.items():
            started_at = time.perf_counter()
            arm()
            seconds[name].append(time.perf_counter() - started_at)
    return {name: 1e3 * statistics.median(s[2:]) for name, s in seconds.items()}


@torch.inference_mode()
def measure(
    config: ModelConfig, dtype: torch.dtype, lengths: list[tuple[int, int]], is_chunk: bool
) -> dict[str, float]:
    pages = sum(-(-sum(pair) // PAGE) for pair in lengths)
    plan, device = _plan(lengths, is_chunk), torch.device("cpu")
    tokens, longest = sum(new for _, new in lengths), max(map(sum, lengths))
    qkv = torch.randn(tokens, config.num_heads + 2 * config.num_kv_heads, config.head_dim).to(dtype)

    def arm(by_products: bool, pads_prompts: bool) -> tuple[Callable[[], object], list[int]]:
        """Returns a function that attends once, and the lengths that it pads prompts to."""
        kv = GatheredKv(config, pages, PAGE, dtype, device, by_products)
        kv.keys_and_values.normal_()
        attention = BatchBuilder(kv, pads_prompts=pads_prompts).build(plan).attention
        widths = [prompts.length for prompts in attention.prefill.prompts]
        return lambda: attention.attend(qkv, 0), widths

    fused, widths = arm(False, False)
    arms = {"fused": fused, "products": arm(True, False)[0]}
    padded, padded_widths = arm(False, fused_kernel_uses_matrix_units(dtype, device))
    if widths != padded_widths:
        arms["padded"] = padded
    if not is_chunk and not compiler_missing(device):
        arms["in place"] = _in_place(config, dtype, lengths, qkv)
    repeats = 5 if tokens * longest > 1 << 20 else 15
    return _medians(arms, repeats)


def _in_place(
    config: ModelConfig, dtype: torch.dtype, lengths: list[tuple[int, int]], qkv: torch.Tensor
) -> Callable[[], object]:
    """Returns a function that attends once by code that is compiled for this shape alone."""
    kv = InPlaceKv(config, sum(-(-sum(pair) // PAGE) for pair in lengths), PAGE, dtype)
    kv.keys.normal_()
    kv.values.normal_()
    batch = BatchBuilder(kv).build(_plan(lengths, False))
    torch._dynamo.reset()  # it refuses to compile the same function for many shapes
    code = torch.compile(
        kv.traced, fullgraph=True, dynamic=False, options={"assert_indirect_indexing": False}
    )
    qkv = torch.nn.functional.pad(qkv, (0, 0, 0, 0, 0, len(batch.tokens) - len(qkv)))
    return lambda: code(qkv, kv.memory(0), batch.attention.inputs)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench attention")
    for name, default in (("threads", 1), ("heads", 9), ("kv-heads", 3), ("dim", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    config = ModelConfig(
        vocab_size=1,
        hidden_size=options.heads * options.dim,
        intermediate_size=1,
        num_layers=1,
        num_heads=options.heads,
        num_kv_heads=options.kv_heads,
        head_dim=options.dim,
        max_positions=4096,
    )
    cases = {f"{n} decodes of {length}": ([(length - 1, 1)] * n, False) for n, length in DECODES}
    cases |= {f"chunk {start}+{new}": ([(start, new)], True) for start, new in CHUNKS}
    cases |= {f"{n} prompts of {length}": ([(0, length)] * n, True) for n, length in PROMPTS}
    found = {}
    for dtype in (torch.bfloat16, torch.float32):
        for name, (lengths, is_chunk) in cases.items():
            key = f"{name}, {str(dtype).removeprefix('torch.')}"
            found[key] = measure(config, dtype, lengths, is_chunk)
            told = "".join(f"  {arm} {ms:8.2f} ms" for arm, ms in found[key].items())
            print(f"{key:32}{told}")
    machine = {"cores": os.cpu_count(), "load": os.getloadavg()[0], "torch": torch.__version__}
    print(json.dumps({"bench": "attention", "machine": machine, "milliseconds": found}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
