"""A GGUF file of any bytes is read, or ends in one short line that names what is wrong."""

from __future__ import annotations

import contextlib
import os
import struct
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.checkpoint.gguf.header import MOST_ENTRIES, read_header
from engine.checkpoint.json_file import MOST_LINE, CheckpointError
from engine.checkpoint.opening import open_source
from engine.checkpoint.tokenizer import Tokenizer
from engine.checkpoint.tokenizer_archive import tokenizer_archive
from engine.computing.weights import load_model
from tests.engine.checkpoint.gguf.writing import plain, write

VOCAB = 274
LINEARS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def pieces() -> dict[str, Any]:
    """The metadata of a tokenizer with scores."""
    letters = [*"abcdefgh", "\u2581", "ab", "\u2581ab", "abab"]
    all_bytes = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *all_bytes, *letters, "[PAD]", "x y", "z"]
    assert len(tokens) == VOCAB
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [-float(i) for i in range(VOCAB)],
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * len(letters), 5, 4, 1],
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": "{{ bos_token }}{{ messages[0]['content'] }}",
    }


def small(path: Path, vocabulary: Mapping[str, Any]) -> Path:
    """A model of one layer, with matrices of two types."""
    sizes = {"context_length": 8, "embedding_length": 32, "feed_forward_length": 32}
    sizes |= {"block_count": 1, "attention.head_count": 2}
    metadata: dict[str, Any] = {f"llama.{key}": value for key, value in sizes.items()}
    metadata |= {"general.architecture": "llama", "llama.attention.layer_norm_rms_epsilon": 1e-5}
    metadata |= {"llama.rope.freq_base": 10000.0, "general.sampling.temp": 0.5}
    values = np.random.default_rng(0).normal(0, 1, (VOCAB, 32)).astype(np.float32)
    quantized = gguf.quants.quantize(values[:32], gguf.GGMLQuantizationType.Q4_0)
    norms = ("output_norm.weight", "blk.0.attn_norm.weight", "blk.0.ffn_norm.weight")
    tensors = {
        "token_embd.weight": (values, "F32"),
        **dict.fromkeys(norms, (values[0], "F32")),
        **{f"blk.0.{name}.weight": (quantized, "Q4_0") for name in LINEARS},
    }
    return write(path / "m.gguf", metadata | vocabulary, tensors)


@pytest.fixture(params=["merges", "pieces"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return small(tmp_path, plain(VOCAB) if request.param == "merges" else pieces())


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def header(
    keys: bytes = b"", num_keys: int = 0, tensors: bytes = b"", num_tensors: int = 0
) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, num_tensors, num_keys) + keys + tensors


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return string(name) + struct.pack("<I", kind) + value


def tensor(name: bytes = b"t", shape: tuple[int, ...] = (32,), kind: int = 0, at: int = 0) -> bytes:
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return string(name) + dims + struct.pack("<IQ", kind, at)


def listed(kind: int, count: int, items: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + items


def test_a_header_is_read_as_the_package_reads_it(file: Path) -> None:
    ours, theirs = read_header(file), gguf.GGUFReader(file)
    fields = {k: f.contents() for k, f in theirs.fields.items() if not k.startswith("GGUF.")}
    assert dict(ours.metadata) == fields
    assert len(ours.tensors) == len(theirs.tensors)
    for their in theirs.tensors:
        our = ours.tensors[their.name]
        assert our.shape == tuple(map(int, their.shape[::-1]))
        assert (our.packing, our.start) == (their.tensor_type.name, their.data_offset)
        assert our.num_bytes == their.n_bytes
        assert ours.read(our, 0, our.num_bytes) == their.data.tobytes()


def test_values_of_every_type_are_read(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "v.gguf", "llama")
    numbers = {"uint8": 255, "int8": -1, "uint16": 65535, "int16": -2, "uint32": 2**32 - 1}
    numbers |= {"int32": -3, "uint64": 2**64 - 1, "int64": -(2**63), "float32": 0.5}
    for kind, value in {**numbers, "float64": 0.1, "bool": True, "string": "é"}.items():
        getattr(writer, f"add_{kind}")(f"a.{kind}", value)
    lists = {"texts": ["", "a", "\u2581"], "numbers": [1, -1], "floats": [0.5], "flags": [True]}
    for name, value in lists.items():
        writer.add_array(f"a.{name}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_header(tmp_path / "v.gguf").metadata
    expected = {**numbers, "float64": 0.1, "bool": True, "string": "é", **lists}
    assert dict(found) == {
        "general.architecture": "llama",
        **{f"a.{name}": value for name, value in expected.items()},
    }


HUGE = 2**64 - 1
WRONG: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "ends too early: its beginning"),
    "another file": (b"version https://git-lfs", "is no GGUF file: it begins with b'vers'"),
    "only a magic number": (b"GGUF", "ends too early: its version"),
    "version 1": (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "GGUF version is 1; 2 and 3"),
    "version of tomorrow": (b"GGUF" + struct.pack("<IQQ", 4, 0, 0), "GGUF version is 4; 2 and 3"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "the other order of bytes"),
    "counts of anything": (header(num_keys=HUGE), f"{HUGE} keys; {MOST_ENTRIES} is the most"),
    "tensors of anything": (header(num_tensors=HUGE), f"{HUGE} tensors"),
    "fewer keys": (header(num_keys=5), "ends too early: key 1 of 5"),
    "fewer tensors": (header(num_tensors=5), "ends too early: tensor 1 of 5"),
    "a long name": (header(struct.pack("<Q", HUGE), 1), "ends too early: key 1 of 1"),
    "a name that is no text": (header(key(b"\xff", 4, b"1234"), 1), "key 1 of 1 has a name"),
    "no such type": (header(key(b"k", 99, b""), 1), "the value of 'k' is of type 99"),
    "a long text": (header(key(b"k", 8, struct.pack("<Q", HUGE)), 1), "the value of 'k' would go"),
    "a long list": (header(key(b"k", 9, listed(0, HUGE)), 1), "the value of 'k' would go"),
    "many texts": (header(key(b"k", 9, listed(8, 2**60)), 1), "the value of 'k' would go"),
    "many empty texts": (
        header(key(b"k", 9, listed(8, 2**60, bytes(800))), 1),
        "the value of 'k' would go",
    ),
    "a text beyond in a list": (
        header(key(b"k", 9, listed(8, 1, struct.pack("<Q", 2**62))), 1),
        "the value of 'k' would go",
    ),
    "lists in a list": (header(key(b"k", 9, listed(9, 1)), 1), "'k' is a list of type 9"),
    "a key twice": (header(key(b"k", 0, b"1") * 2, 2), "the key 'k' is there twice"),
    "a tensor twice": (header(tensors=tensor() * 2, num_tensors=2), "tensor 't' is there twice"),
    "no dimension": (header(tensors=tensor(shape=()), num_tensors=1), "'t' has 0 dimensions"),
    "many dimensions": (
        header(tensors=tensor(shape=(1,) * 5), num_tensors=1),
        "'t' has 5 dimensions",
    ),
    "all dimensions": (
        header(tensors=string(b"t") + struct.pack("<I", 2**32 - 1), num_tensors=1),
        "'t' has 4294967295 dimensions",
    ),
    "an empty dimension": (header(tensors=tensor(shape=(0,)), num_tensors=1), r"the shape \[0\]"),
    "a wide dimension": (header(tensors=tensor(shape=(HUGE,)), num_tensors=1), "has the shape"),
    "sizes that overflow": (
        header(tensors=tensor(shape=(2**31 - 1,) * 4), num_tensors=1),
        "'t' would go beyond its end",
    ),
    "a type that is not supported": (
        header(tensors=tensor(shape=(256,), kind=21), num_tensors=1),
        "the tensor 't' is IQ3_S, which is not supported",
    ),
    "a type of tomorrow": (
        header(tensors=tensor(kind=1000), num_tensors=1),
        "the tensor 't' is type 1000, which is not supported",
    ),
    "part of a block": (
        header(tensors=tensor(shape=(33,), kind=2), num_tensors=1),
        "'t' is Q4_0, whose rows are multiples of 32 weights",
    ),
    "a tensor beyond the end": (
        header(tensors=tensor(at=2**63), num_tensors=1) + bytes(999),
        "'t' would go beyond its end",
    ),
    "a tensor between": (
        header(tensors=tensor(at=4), num_tensors=1) + bytes(999),
        "'t' begins at byte .* no multiple of 32",
    ),
    "tensors on each other": (
        header(tensors=tensor() + tensor(b"u", at=32), num_tensors=2) + bytes(999),
        "'t' and 'u' overlap",
    ),
    "no alignment": (
        header(key(b"general.alignment", 4, struct.pack("<I", 0)), 1),
        "general.alignment must be a whole number from 8",
    ),
    "one of several parts": (
        header(key(b"split.count", 2, struct.pack("<H", 3)), 1),
        "split.count says that it is a part of several, .* got 3",
    ),
    "a list beyond what is read": (
        header(key(b"general.architecture", 9, listed(0, 1 << 23, bytes(1 << 23))), 1),
        "general.architecture has 8388608 items",
    ),
    "a text beyond what is read": (
        header(key(b"general.architecture", 8, string(b"x" * (1 << 20) + b"x")), 1),
        "general.architecture has 1048577 bytes",
    ),
    "a text that is none": (
        header(key(b"general.architecture", 8, string(b"\xff\xfe")), 1),
        "general.architecture holds what is no UTF-8",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_whole_gguf_file_is_named(wrong: str, tmp_path: Path) -> None:
    content, message = WRONG[wrong]
    path = tmp_path / "w.gguf"
    path.write_bytes(content)
    for use in (lambda: open_source(path).model_config(), lambda: Tokenizer.load(path)):
        tracemalloc.start()
        try:
            with pytest.raises(CheckpointError) as caught:
                use()
            assert tracemalloc.get_traced_memory()[1] < 80 << 20
        finally:
            tracemalloc.stop()
    with pytest.raises(CheckpointError, match=message) as caught:
        open_source(path).model_config()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= MOST_LINE


def test_a_header_that_never_ends_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "w.gguf"
    path.write_bytes(header(key(b"k", 9, listed(0, 1 << 40)), 1))
    os.truncate(path, 1 << 41)  # it takes no room on the disk
    with pytest.raises(CheckpointError, match="its header takes over 67108864 bytes"):
        read_header(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(CheckpointError, match=r"pipe\.gguf is no file"):
        open_source(tmp_path / "pipe.gguf")
    with pytest.raises(CheckpointError, match=r"no checkpoint folder or GGUF file .*none\.gguf"):
        open_source(tmp_path / "none.gguf")
    with pytest.raises(CheckpointError, match=r"\.gguf cannot be read: File name too long"):
        open_source(tmp_path / f"{'x' * 300}.gguf")


def test_a_folder_of_gguf_files_says_to_name_one(file: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json in .*m\.gguf: name the GGUF file"):
        open_source(file.parent)


EXTREME = (0, 1, 2, 8, 9, 127, 128, 255)


def use_all(path: Path) -> None:
    """All that a server does with a file."""
    source = open_source(path)
    context = source.model_config().max_positions
    source.shape_digest()
    source.json("generation_config.json")
    Tokenizer.load(path).encode("a text")
    tokenizer_archive(path)
    if context < 1 << 16:  # a rotary table as long as is stated takes its time, of any checkpoint
        load_model(path)


def test_a_file_that_ends_anywhere_is_refused(file: Path) -> None:
    content = file.read_bytes()
    use_all(file)
    for size in [*range(0, 200), *range(200, len(content), 97), len(content) - 1]:
        file.write_bytes(content[:size])
        with pytest.raises(CheckpointError, match="ends too early"):
            open_source(file)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_bytes_turned_are_served_or_refused(file: Path, data: st.DataObject) -> None:
    """In the header mostly: what a tensor holds is only weights."""
    good = file.with_name("good")
    if not good.exists():
        good.write_bytes(file.read_bytes())
    content = bytearray(good.read_bytes())
    end = min(tensor.start for tensor in read_header(good).tensors.values())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, end + 99))
        content[at] = data.draw(st.sampled_from(EXTREME) | st.integers(0, 255))
    file.write_bytes(content)
    with contextlib.suppress(CheckpointError):  # and nothing else
        use_all(file)
