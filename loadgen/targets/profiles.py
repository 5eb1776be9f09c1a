"""The profiles that are simulated: how long iterations of a model on a device take, and what fits.

* `a100-llama3-8b`: the coefficients published with Niyama (arXiv 2503.22562; QoServe, ASPLOS 2026).
* `roofline:DEVICE:CONFIG.json`: from a device's data sheet and the config.json of a model.
* `log`: that of the engine whose decision log is replayed.
* a JSON file with the calibration that a live server saved (`LatencyProfile.to_dict`); beside its
  coefficients it may say `kv_tokens`, `context_len` and `max_batch_size`.

Seconds, bytes, FLOP/s, tokens. A roofline (Williams et al., 2009) charges an iteration for the
weights it reads or for the arithmetic of its tokens, whichever takes longer, and for the attention
on top; EFFICIENCY says how much of a data sheet's figures a good implementation gets.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from engine import tiers as server_tiers
from engine import tiers_file
from engine.deciding.latency import A100_LLAMA3_8B, UNBOUNDED, LatencyProfile, Segment
from loadgen.workload.logged import Log, client_tier
from niyama.client.values import Importance, Targets, Tier

# The tiers of the paper's evaluation (section 4): Q1, Q2, Q3.
PAPER_TIERS = (
    Tier("interactive", Targets(ttft=6.0, tbt=0.05), Importance.NORMAL),
    Tier("standard", Targets(ttlt=600.0), Importance.NORMAL),
    Tier("batch", Targets(ttlt=1800.0), Importance.NORMAL),
)


# The tiers of a server that was told nothing.
SERVER_TIERS = tuple(map(client_tier, server_tiers.BUILT_IN))
HOST_OVERHEAD_S = 2e-3  # per iteration of a roofline: launching kernels, scheduling
_MAX_BATCH_SIZE = 256
_UNKNOWN_KV_TOKENS = 1 << 20  # of a saved calibration that says nothing: memory never binds
_UNKNOWN_CONTEXT_LEN = 1 << 17


@dataclass(frozen=True, slots=True)
class Profile:
    """A model on a device, as one replica serves it. Raises BadProfile without room for a token."""

    name: str
    latency: LatencyProfile
    kv_tokens: int  # positions that the KV memory holds
    context_len: int
    max_batch_size: int = _MAX_BATCH_SIZE
    tiers: tuple[Tier, ...] = SERVER_TIERS

    def __post_init__(self) -> None:
        if self.kv_tokens < 1:
            raise BadProfile(f"kv_tokens must be at least 1, got {self.kv_tokens}")

    def with_overhead(self, seconds: float) -> Profile:
        """Returns the same profile with iterations that all take so many seconds longer."""
        latency = self.latency
        slower = tuple(s._replace(base=s.base + seconds) for s in latency.segments)
        return replace(self, latency=replace(latency, segments=slower))


# A100-80GB: 80 GB, of which Llama-3-8B's weights take 16; 128 KiB of KV per token.
A100 = Profile("a100-llama3-8b", A100_LLAMA3_8B, 430_000, 8192, tiers=PAPER_TIERS)


class Device(NamedTuple):
    """A device by its data sheet: dense bf16 FLOP/s, bytes per second, and bytes of memory."""

    flops: float
    bandwidth: float
    memory: float


# NVIDIA data sheets: A100 80GB (PCIe 1,935 and SXM 2,039 GB/s), H100 SXM, H200 SXM, L4, L40S; the
# dense figures, half of those that a sheet gives with sparsity.
DEVICES = {
    "a100-80gb": Device(312e12, 2.039e12, 80e9),
    "h100": Device(989.5e12, 3.35e12, 80e9),
    "h200": Device(989.5e12, 4.8e12, 141e9),
    "l4": Device(121e12, 0.3e12, 24e9),
    "l40s": Device(362e12, 0.864e12, 48e9),
}


class Efficiency(NamedTuple):
    """The shares of a data sheet's figures that are reached: assumptions, not measurements."""

    flops: float = 0.5
    bandwidth: float = 0.8
    memory: float = 0.9  # the rest: activations, the runtime


EFFICIENCY = Efficiency()


class ModelShape(NamedTuple):
    """The sizes of a model that a roofline needs: parameters as counts, bytes of 16-bit numbers."""

    layer_parameters: int  # of all layers: read, and multiplied with every token
    head_parameters: int  # of the output layer: only for tokens that are sampled from
    embedding_parameters: int  # kept in memory, hardly read; 0 where tied to the output layer
    kv_bytes: int  # per position
    attention_flops: int  # per (token, position it attends to)
    context_len: int


BYTES_PER_NUMBER = 2


class BadProfile(ValueError):
    """The profile cannot be used; the message is one line."""


LOGGED = "log"  # names the profile of the engine whose log is replayed


def load(text: str, log: Log | None = None) -> Profile:
    """Makes the profile that `--simulate` names, while `log` is replayed. Raises BadProfile, or
    OSError.
    """
    if text == A100.name:
        return A100
    if text == LOGGED and not Path(text).exists():
        return logged(log)
    if text.startswith("roofline:"):
        device, _, path = text.removeprefix("roofline:").partition(":")
        shape = _model_shape(_read_json(Path(path)), path)
        return roofline(text, _device(device), shape)
    return _saved(Path(text))


def logged(log: Log | None) -> Profile:
    """Makes the profile of the engine whose log it is. Raises BadProfile where there is none."""
    if log is None:
        raise BadProfile("log is the profile of a replayed decision log: it needs --replay")
    header = log.header
    name = f"{header.model} as logged"
    sizes = header.kv_tokens, header.context_len, header.max_batch_size
    return Profile(name, header.profile, *sizes, log.tiers)


def _read_json(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise BadProfile(
            f"{str(path)!r} is no file; a profile is {A100.name}, roofline:DEVICE:CONFIG.json, "
            "the file of a saved calibration, or log"
        )
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadProfile(f"{path}: not JSON: {error}") from None
    if not isinstance(document, dict):
        raise BadProfile(f"{path}: not a JSON object")
    return document


def _saved(path: Path) -> Profile:
    document = _read_json(path)
    try:
        latency = LatencyProfile.from_dict(dict(document))
        return Profile(
            latency.name,
            latency,
            int(document.get("kv_tokens", _UNKNOWN_KV_TOKENS)),
            int(document.get("context_len", _UNKNOWN_CONTEXT_LEN)),
            int(document.get("max_batch_size", _MAX_BATCH_SIZE)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BadProfile(f"{path}: not a saved calibration: {error}") from None


def _device(text: str) -> Device:
    """Reads a name of the table, or FLOPS,BANDWIDTH,MEMORY. Raises BadProfile."""
    if text in DEVICES:
        return DEVICES[text]
    try:
        flops, bandwidth, memory = (float(part) for part in text.split(","))
    except ValueError:
        known = ", ".join(DEVICES)
        raise BadProfile(
            f"unknown device {text!r}: one of {known}, or FLOPS,BANDWIDTH,MEMORY such as "
            "312e12,2e12,80e9"
        ) from None
    if not min(flops, bandwidth, memory) > 0:
        raise BadProfile(f"the figures of a device are positive, got {text}")
    return Device(flops, bandwidth, memory)


def _model_shape(config: Mapping[str, Any], path: str) -> ModelShape:
    """Reads the shape of a decoder with gated MLPs (Llama, Mistral, Qwen) from its config.json.

    Raises BadProfile.
    """
    try:
        hidden, layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
        heads, vocabulary = int(config["num_attention_heads"]), int(config["vocab_size"])
        mlp, context_len = int(config["intermediate_size"]), int(config["max_position_embeddings"])
        kv_heads = int(config.get("num_key_value_heads") or heads)
        if min(hidden, layers, heads, vocabulary, mlp, context_len, kv_heads) < 1:
            raise ValueError("a size is not positive")
        head_dim = int(config.get("head_dim") or hidden // heads)
    except (KeyError, TypeError, ValueError) as error:
        raise BadProfile(f"{path}: not a model's config.json: {error}") from None
    attention = hidden * head_dim * (2 * heads + 2 * kv_heads)
    tied = bool(config.get("tie_word_embeddings", False))
    return ModelShape(
        layer_parameters=layers * (attention + 3 * hidden * mlp),
        head_parameters=hidden * vocabulary,
        embedding_parameters=0 if tied else hidden * vocabulary,
        kv_bytes=layers * 2 * kv_heads * head_dim * BYTES_PER_NUMBER,
        attention_flops=layers * 4 * heads * head_dim,
        context_len=context_len,
    )


def roofline(
    name: str,
    device: Device,
    model: ModelShape,
    efficiency: Efficiency = EFFICIENCY,
    host_overhead_s: float = HOST_OVERHEAD_S,
) -> Profile:
    """Makes the profile of a model on a device by their figures; see the module.

    Raises BadProfile where the weights do not fit.
    """
    flops = device.flops * efficiency.flops
    bandwidth = device.bandwidth * efficiency.bandwidth
    weights = (model.layer_parameters + model.head_parameters) * BYTES_PER_NUMBER
    all_weights = weights + model.embedding_parameters * BYTES_PER_NUMBER
    free = device.memory * efficiency.memory - all_weights
    kv_tokens = int(free / model.kv_bytes)
    if kv_tokens < 1:
        raise BadProfile(
            f"{name}: the weights take {all_weights / 1e9:.1f} GB, the device has "
            f"{device.memory / 1e9:.0f}"
        )
    reading_s = weights / bandwidth
    token_s = 2 * model.layer_parameters / flops
    sampled_s = 2 * model.head_parameters / flops
    context_s = model.kv_bytes / bandwidth
    pair_s = model.attention_flops / flops

    def segment(up_to: int, base_s: float, per_token_s: float) -> Segment:
        return Segment(
            up_to,
            host_overhead_s + base_s,
            prefill=per_token_s,
            decode=per_token_s + (sampled_s if per_token_s else 0.0),
            decode_context=context_s,
            prefill_context=context_s,
            prefill_pairs=pair_s,
        )

    # Below this many tokens the weights take longer to read than the arithmetic.
    ridge = max(1, int(reading_s / token_s))
    segments = (segment(ridge, reading_s, 0.0), segment(UNBOUNDED, 0.0, token_s))
    return Profile(name, LatencyProfile(name, segments), kv_tokens, model.context_len)


def load_tiers(path: Path) -> tuple[Tier, ...]:
    """Reads the tiers of a server's TOML file, as the server does. Raises BadProfile.

    Its presets for applications do not matter here: every request names its tier or its targets.
    """
    return tuple(map(client_tier, _load_file(path).tiers.values()))


def load_weights(path: Path) -> dict[str, float]:
    """Reads the weights of the tenants that a server's TOML file names. Raises BadProfile."""
    return {name: share.weight for name, share in _load_file(path).tenants.items()}


def _load_file(path: Path) -> server_tiers.Tiers:
    try:
        return tiers_file.load(path)
    except ValueError as error:
        raise BadProfile(str(error)) from None
