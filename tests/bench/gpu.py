"""The engine on one GPU against the GPU's own limits, with random weights of a model's shape.

    python -m tests.bench gpu [--shape llama-3-8b] [--peer] [--save-profile FILE]

Decodes at batch 1 and at batch 64 over contexts of 1,024 tokens, a prefill chunk of 2,048 tokens,
64 decodes with a chunk of 512, each beside its roofline: the bytes of weights and KV over the rate
at which this device copies, the arithmetic over the rate at which it multiplies bfloat16 matrices
of 8,192. Steady decode goes through scheduler and loop as in service, one iteration ahead and, for
comparison, in turns; the device's idle share in it is from a profiler's trace. The latency model is
fitted as at a server's start and judged on shapes that it was not fitted to. `--peer`
serves 64 requests by this engine and by transformers' continuous batching, on the same weights.
On a GPU it fails where a goal is missed or something was compiled after the start.
Runs on a CPU too (`--device cpu --shape tiny`), to see that it works. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from engine.checkpoint.model_config import ModelConfig, RopeConfig
from engine.computing.attention.gathered import GatheredKv
from engine.computing.calibration import Shape, make_plan, measure
from engine.computing.fit import fit, median_error
from engine.computing.loading import store
from engine.computing.runner import ModelExecutor
from engine.computing.weights import random_model
from engine.deciding.latency import LatencyModel
from engine.deciding.request import Request, Sampling
from engine.deciding.scheduler import Scheduler
from engine.deciding.scheduler_config import SchedulerConfig
from engine.driving import profiles
from engine.driving.build import UNCALIBRATED
from engine.driving.loop import EngineLoop
from engine.messages import Command, Report, Submit
from engine.processes.frames import pack
from tests.bench._offline import serve

PAGE = 16
SHAPES = {
    "llama-3-8b": ModelConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        max_positions=8192,
        rms_norm_eps=1e-5,
        rope=RopeConfig(theta=500000.0),
        dtype="bfloat16",
    ),
    "llama-3-1b": ModelConfig(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_layers=16,
        num_heads=32,
        num_kv_heads=8,
        head_dim=64,
        max_positions=8192,
        rms_norm_eps=1e-5,
        rope=RopeConfig(theta=500000.0),
        tied_embeddings=True,
        dtype="bfloat16",
    ),
    "tiny": ModelConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        max_positions=4096,
        tied_embeddings=True,
        dtype="bfloat16",
    ),
}
CONTEXT = 1024
STREAMS, OUTPUT = 64, 128  # in steady decode; the memory holds as much
CASES = {
    "decode 1": Shape((CONTEXT,)),
    "decode 64": Shape((CONTEXT,) * 64),
    "prefill 2048": Shape((), ((0, 2048),)),
    "mixed 64 + 512": Shape((CONTEXT,) * 64, ((0, 512),)),
}
# Share of the roofline that each should reach; the mixed one is told as its time over the bound.
IDLE_GOAL, ERROR_GOAL = 0.10, 0.10  # of the device in steady decode; of the latency model, median
GOALS = {"decode 1": 0.80, "decode 64": 0.65, "prefill 2048": 0.60, "mixed 64 + 512": 1 / 1.15}


class Bench:
    """One executor, and seconds measured on its device."""

    def __init__(self, config: ModelConfig, device: str, compile: bool) -> None:
        self.config = config
        self.device = torch.device(device)
        model = random_model(config, torch.bfloat16, device)
        store(model)
        pages = 72 * (CONTEXT // PAGE + 1) + 2048 // PAGE
        kv = GatheredKv(config, pages, PAGE, torch.bfloat16, device)
        self.executor = ModelExecutor(model, kv, compile)
        self.executor.warm_up()
        if self.device.type == "cuda":
            self.executor.capture_decodes(64, 2 * CONTEXT)
        self.compiled = self.executor.compilations  # none is to follow

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def median_s(self, what: Callable[[], object], repeats: int) -> float:
        seconds = []
        for _ in range(repeats + 3):
            self.synchronize()
            started_at = time.perf_counter()
            what()
            self.synchronize()
            seconds.append(time.perf_counter() - started_at)
        return statistics.median(seconds[3:])

    def limits(self) -> dict[str, float]:
        """Bytes read per second while copying, and floating-point operations per second."""
        small = self.device.type == "cpu"
        source = torch.ones(1 << (26 if small else 31), dtype=torch.uint8, device=self.device)
        into, size = torch.empty_like(source), 1024 if small else 8192
        a = torch.randn(size, size, device=self.device).bfloat16()
        copy_s = self.median_s(lambda: into.copy_(source), 10)
        product_s = self.median_s(lambda: a @ a, 10)
        return {"bandwidth": 2 * source.nbytes / copy_s, "matmul": 2 * size**3 / product_s}

    def bound_s(self, shape: Shape, limits: dict[str, float]) -> dict[str, float]:
        """Returns the parts of the roofline: bytes of decodes, arithmetic of prefill."""
        config, work = self.config, shape.work
        table = config.vocab_size * config.hidden_size
        matrices = config.num_parameters - table * (1 if config.tied_embeddings else 2)
        per_position = 4 * config.num_layers * config.num_kv_heads * config.head_dim
        decode_bytes = 2 * (matrices + table) + per_position * work.decode_context
        pairs = 4 * config.num_layers * config.num_heads * config.head_dim * work.prefill_pairs
        flops = 2 * matrices * work.num_prefill + pairs
        return {
            "decodes": decode_bytes / limits["bandwidth"] if work.num_decodes else 0.0,
            "prefill": flops / limits["matmul"],
        }

    def steady(self, looks_ahead: bool, repeats: int) -> dict[str, float | None]:
        """Milliseconds of an iteration in steady decode at batch 64, and the share of them in which
        the device is idle; None without a device of its own.
        """
        config = SchedulerConfig(
            num_pages=self.executor.num_pages,
            context_len=2 * CONTEXT,
            page_size=PAGE,
            policy="fcfs",
            chunk_size=2048,
            max_batch_size=STREAMS,
            prefix_caching=False,
        )
        scheduler = Scheduler(config, LatencyModel(UNCALIBRATED))
        loop = EngineLoop(
            scheduler, self.executor, Streams(), time.monotonic, looks_ahead=looks_ahead
        )
        while scheduler.stats().num_running < STREAMS:
            loop.step()
        for _ in range(3):
            loop.step()
        is_cuda = self.device.type == "cuda"
        activities = [torch.profiler.ProfilerActivity.CUDA]
        watched = torch.profiler.profile(activities=activities) if is_cuda else None
        with watched or contextlib.nullcontext():
            self.synchronize()
            started_at = time.perf_counter()
            for _ in range(repeats):
                loop.step()
            self.synchronize()
            seconds = time.perf_counter() - started_at
        assert scheduler.stats().num_running == STREAMS
        idle = None
        if watched is not None:
            busy_us = sum(event.self_device_time_total for event in watched.key_averages())
            idle = 1 - 1e-6 * busy_us / seconds
        return {"ms": 1e3 * seconds / repeats, "idle_share": idle}


class Streams:
    """A pipe with 64 clients behind it, each with a prompt of 1,024 tokens, reading on."""

    def __init__(self) -> None:
        now = time.monotonic()
        self._new: list[Command] = [
            Submit(Request(str(seed), [0] * CONTEXT, Sampling(seed=seed, max_tokens=OUTPUT), now))
            for seed in range(STREAMS)
        ]

    def receive(self, timeout_s: float | None) -> list[Command]:
        new, self._new = self._new, []
        return new

    def send(self, report: Report) -> None:
        pack(report)


def as_transformers(config: ModelConfig, device: torch.device) -> Any:
    """Returns the bench's model, weight for weight, as one of transformers."""
    import transformers

    with torch.device(device):
        peer = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=config.vocab_size,
                hidden_size=config.hidden_size,
                intermediate_size=config.intermediate_size,
                num_hidden_layers=config.num_layers,
                num_attention_heads=config.num_heads,
                num_key_value_heads=config.num_kv_heads,
                head_dim=config.head_dim,
                max_position_embeddings=config.max_positions,
                rms_norm_eps=config.rms_norm_eps,
                rope_parameters={"rope_type": "default", "rope_theta": config.rope.theta},
                tie_word_embeddings=config.tied_embeddings,
                dtype=torch.bfloat16,
                attn_implementation="paged|sdpa",
            )
        ).to(torch.bfloat16)
    model = random_model(config, torch.bfloat16, device)  # from the same seed, not yet packed
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    with torch.inference_mode():
        peer.model.embed_tokens.weight.copy_(model.embedding)
        if not config.tied_embeddings:
            peer.lm_head.weight.copy_(model.head.weight.t())
        for block, layer in zip(model.blocks, peer.model.layers, strict=True):
            attention, mlp = layer.self_attn, layer.mlp
            parts = block.qkv.weight.t().split((q, kv, kv))
            into = (attention.q_proj, attention.k_proj, attention.v_proj)
            gate_up = block.gate_up.weight.t().chunk(2)
            pairs = [*zip(into, parts, strict=True), (attention.o_proj, block.out.weight.t())]
            pairs += [*zip((mlp.gate_proj, mlp.up_proj), gate_up, strict=True)]
            for linear, weight in (*pairs, (mlp.down_proj, block.down.weight.t())):
                linear.weight.copy_(weight)
    return peer.eval()


def against_transformers(bench: Bench) -> dict[str, float]:
    """Tokens per second of 64 requests at once: prompts of 64 to 1,024 tokens, outputs of 64."""
    import transformers

    rng = random.Random(5)
    asked = [
        ([rng.randrange(100, bench.config.vocab_size) for _ in range(rng.randint(64, 1024))], 64)
        for _ in range(64)
    ]
    total = sum(len(prompt) + length for prompt, length in asked)
    serve(bench.executor, asked, 2048)
    ours_s = serve(bench.executor, asked, 2048)["seconds"]
    peer = as_transformers(bench.config, bench.device)
    generation = transformers.GenerationConfig(
        max_new_tokens=64, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    prompts = [prompt for prompt, _ in asked]
    seconds = []
    for _ in range(2):
        started_at = time.perf_counter()
        peer.generate_batch(prompts, generation_config=generation)
        seconds.append(time.perf_counter() - started_at)
    return {
        "ours": total / ours_s,
        "transformers": total / seconds[-1],
        "ratio": seconds[-1] / ours_s,
    }


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench gpu")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", choices=SHAPES, default="llama-3-8b")
    parser.add_argument("--compile", choices=("on", "off"), default="on")
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--calibration-s", type=float, default=20.0)
    parser.add_argument("--save-profile", type=Path)
    options = parser.parse_args(argv)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print("bench gpu: no CUDA device; --device cpu --shape tiny shows that it runs")
        return 2
    bench = Bench(SHAPES[options.shape], options.device, options.compile == "on")
    limits = bench.limits()
    cases: dict[str, dict[str, Any]] = {}
    for name, shape in CASES.items():
        plan = make_plan(shape, PAGE)
        took_s = bench.median_s(lambda plan=plan: bench.executor.run(plan), options.repeats)  # type: ignore[misc] # bound now
        bound_s = sum(bench.bound_s(shape, limits).values())
        cases[name] = {"ms": 1e3 * took_s, "bound_ms": 1e3 * bound_s, "share": bound_s / took_s}
        print(
            f"{name:16} {1e3 * took_s:9.2f} ms, bound {1e3 * bound_s:9.2f} ms:"
            f" {bound_s / took_s:.0%} (goal {GOALS[name]:.0%})"
        )
    steady = {}
    for name, looks_ahead in (("ahead", True), ("in turns", False)):
        steady[name] = bench.steady(looks_ahead, options.repeats)
        idle = steady[name]["idle_share"]
        told = "" if idle is None else f", device idle {idle:.1%} (goal: under {IDLE_GOAL:.0%})"
        print(f"steady decode 64, {name:8} {steady[name]['ms']:9.2f} ms{told}")
    measured = measure(bench.executor, 2 * CONTEXT, 64, options.calibration_s)
    if not measured.held_out:
        raise SystemExit(f"--calibration-s {options.calibration_s:g} is too short to judge a fit")
    profile = fit(f"{options.shape} on {options.device}", measured.samples, measured.max_chunk)
    if options.save_profile is not None:
        profiles.save(profile, options.save_profile)
    result = {
        "bench": "gpu",
        "shape": options.shape,
        "device": torch.cuda.get_device_name()
        if bench.device.type == "cuda"
        else platform.processor() or "cpu",
        "torch": torch.__version__,
        "limits": limits,
        "cases": cases,
        "steady": steady,
        "latency_model_median_error": median_error(profile, measured.held_out),
        "compilations_after_start": bench.executor.compilations - bench.compiled,
        "peer": against_transformers(bench) if options.peer else None,
    }
    result["missed"] = missed(result) if bench.device.type == "cuda" else None
    print(json.dumps(result))
    return 1 if result["missed"] else 0


def missed(result: dict[str, Any]) -> list[str]:
    """Returns the names of the goals that were not reached."""
    names = [name for name, goal in GOALS.items() if result["cases"][name]["share"] < goal]
    if result["steady"]["ahead"]["idle_share"] >= IDLE_GOAL:
        names.append("idle share")
    if result["latency_model_median_error"] >= ERROR_GOAL:
        names.append("latency model")
    if result["compilations_after_start"]:
        names.append("compilations")
    return names


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
