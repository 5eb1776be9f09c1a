"""What has been measured of CPUs: which way of computing is the faster one, and from when on.

Two things make a CPU differ from another here. One with instructions for bfloat16 can multiply in
it at all; one with matrix units (AMX) multiplies whole tiles in it, and torch's fused attention
kernel uses them. Two libraries make sizes differ from each other: oneDNN compiles code for every
shape that a product has for the first time, and it has shapes in which it is slow.

Each number below says what was measured, and with what it can be measured again. All was measured
on one or two cores of virtual machines, in bfloat16 and where matrix units are spoken of on a Xeon
that has them, mostly in the shape of SmolLM2-135M (30 layers of 576, 9 heads and 3 key-value heads
of 64). What differs too much between CPUs to be a number here is measured at load (autotune.py).
"""

from __future__ import annotations

import torch

# Products of matrices

# How many rows oneDNN lays a matrix out for. What it makes of this number reads fastest for any
# number of rows: half the time of the plain layout from 1 to 64 rows.
PACKED_FOR_ROWS = 64

# For every number of rows that a product has for the first time oneDNN compiles code, 0.25 to
# 0.7 ms each and up to 0.6 MB of it kept, so batches are padded to few numbers of rows (batch.py):
# every one up to `exact_rows`, then every second, every fourth and so on, at last every 16th. The
# median TTFT of a server's first seconds fell by a third. `python -m tests.bench products`.
COARSEST_ROWS = 16

# With so many rows in bfloat16 oneDNN, where it uses matrix units, takes longer than with the first
# number beyond: a layer took 1.50 ms with 24 rows and 1.18 ms with 36, on two cores. Slow are 17 to
# 32; 33 to 35 are rounded up to 36 anyway. `python -m tests.bench products`.
SLOW_ROWS = range(17, 36)
NO_ROWS = range(0)
# They are padded beyond only where that takes at most so much of the time, measured at load.
WORTH_PADDING = 0.9

# A second copy of the matrices, in a layout for one row, is kept only where a row through it takes
# at most so much of the time of a row through the packed ones: a tie was decided by the moment. In
# float32 a lone decode took 60 ms packed, 44 ms plain and 88 ms in strips, on a core of a Xeon with
# matrix units; on two cores of another CPU strips read 34.8 GB/s where packed ones read 21.9.
WORTH_A_COPY = 0.85
# Only a model of at most so many bytes is kept twice.
MOST_COPIED_BYTES = 1 << 30
# What is measured to choose takes matrices of so many bytes in turn: no cache keeps them.
BEYOND_CACHE_BYTES = 128 << 20

# Attention: torch's fused kernel, or the two products and the softmax written out

# In bfloat16 without matrix units the products are the faster way where they are large: from so
# many positions of a decode group on, padding included, and from so many pairs of a chunk's query
# and key on. Chunks took half the time that the kernel takes. With matrix units the kernel is the
# faster one: a chunk of 2,048 tokens took 28.3 ms in it and 50.7 by products, on one core.
# `python -m tests.bench attention`.
PRODUCTS_FROM_POSITIONS = 1024
PRODUCTS_FROM_PAIRS = 96 * 96
# So many of a chunk's queries are multiplied at a time: their scores stay in the cache.
QUERIES_AT_ONCE = 128

# In float32 the products are the faster way for prompts of up to so many tokens: 20 tokens took
# 0.20 ms by products and 0.25 ms by the kernel, 512 took 26.6 and 16.5 ms.
FLOAT32_PRODUCTS_UP_TO = 128

# In bfloat16 the fused kernel is given numbers of queries and keys that are multiples of this. With
# matrix units it compiles code for each new pair of numbers and keeps it for ever: 4,000 chunks of
# random lengths grew a process from 233 to 1,022 MiB, and so padded to 271 MiB.
FUSED_MULTIPLE = 16

# The fused kernel lays keys and values out for matrix units (torch's FlashAttentionKernel.cpp) from
# so many tokens of a prompt on and, of just so many, with up to so many threads.
MATRIX_UNITS_FROM = 64
MATRIX_UNITS_THREADS = 16
# A prompt of so many tokens and more is worth being padded to MATRIX_UNITS_FROM: 8 prompts of 34
# tokens took 1.36 ms as they were and 1.39 padded, of 44 1.67 and 1.33, of 57 2.12 and 1.43, on two
# cores. `python -m tests.bench attention --threads 2`.
WORTH_MATRIX_UNITS = 41

# Attention: what is computed together

# A further group of decodes costs a few kernel calls in every layer, about as much as reading so
# many padded positions.
GROUP_COST = 2048
# A further group of prompts costs as much as so many padded pairs of a query and a key. A group has
# no more than so many pairs, whose scores should stay in the cache. Groups are 1.3 to 3.7 times as
# fast as their prompts one by one.
PROMPT_GROUP_COST = 8192
PROMPT_GROUP_PAIRS = 1 << 19
LONGEST_TOGETHER = 512  # tokens of a prompt; a longer one is computed by itself

# Sampling: the likeliest token

# The largest number of a row is found several numbers at a time, the place of it one by one. So the
# largest of each block of a vocabulary is found first, and the place in one block only: 4 rows of
# 49,152 took 0.036 ms so and 0.080 ms at once, 1 row 0.023 and 0.021 ms, on one core. It is done
# from so many rows on.
VOCABULARY_BLOCK = 256
ROWS_WORTH_BLOCKS = 4


def can_pack(dtype: torch.dtype) -> bool:
    """Whether oneDNN has a layout of its own for matrices of this dtype on this CPU. It has one for
    float32, and one for bfloat16 where the CPU has the instructions (AVX-512, or avx_ne_convert).
    """
    if not torch.backends.mkldnn.is_available():
        return False
    is_bfloat16 = dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32 or is_bfloat16


def has_matrix_units() -> bool:
    """Whether this CPU has matrix units (AMX), and the system lets processes use them."""
    return torch.cpu._is_amx_tile_supported()


def uses_matrix_units(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether products of this dtype on this device are computed by a CPU's matrix units."""
    return is_cpu_bfloat16(dtype, device) and has_matrix_units()


def is_fused_kernel_slow(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether large products take less time written out than in torch's fused attention kernel."""
    return is_cpu_bfloat16(dtype, device) and not has_matrix_units()


def fused_kernel_uses_matrix_units(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the fused kernel uses matrix units for prompts from MATRIX_UNITS_FROM tokens on. With
    more than MATRIX_UNITS_THREADS threads it takes laying keys and values out for them to be too
    much work.
    """
    return uses_matrix_units(dtype, device) and torch.get_num_threads() <= MATRIX_UNITS_THREADS


def is_cpu_bfloat16(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether what is computed in this dtype on this device is bfloat16 on a CPU."""
    return device.type == "cpu" and dtype == torch.bfloat16


def exact_rows(dtype: torch.dtype, device: torch.device) -> int:
    """Returns up to how many rows a batch is not padded to a coarser number (COARSEST_ROWS). With
    matrix units finer steps are no faster, and from 128 rows on numbers that are no multiples of 16
    are much slower: a layer took 3.67 ms with 136 rows and 2.64 ms with 144, on two cores
    (`python -m tests.bench products`).
    """
    return 16 if uses_matrix_units(dtype, device) else 32


def rounded_up(count: int, exact: int, coarsest: int = 1 << 30) -> int:
    """Rounds up to the next of few numbers: to every one up to `exact`, a power of two, then to
    every second up to twice that, every fourth up to four times that and so on, at last to every
    `coarsest`-th.
    """
    step = max(1, min(coarsest, (1 << (count - 1).bit_length()) // exact))
    return -(-count // step) * step
