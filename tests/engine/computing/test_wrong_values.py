"""A checkpoint folder with anything in it is served, or ends in one short line that says why."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from engine.checkpoint.json_file import MOST_BYTES, MOST_LINE, CheckpointError, read_json
from engine.checkpoint.model_config import ModelConfig
from engine.checkpoint.source import Folder
from engine.computing.loading import load
from engine.computing.tensor_files import INDEX, SINGLE
from engine.computing.weights import check_memory, check_weights, load_model
from tests.engine.checkpoint.test_model_config import LLAMA, LLAMA3
from tests.engine.computing.parts import FAMILIES, Saved

BASE = LLAMA | {"num_hidden_layers": 2, "use_sliding_window": True, "layer_types": None}
# Every key that is read, and what those of rope_scaling are called.
KEYS = (
    *("architectures", "model_type", "vocab_size", "hidden_size", "intermediate_size"),
    *("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "dtype"),
    *("torch_dtype", "max_position_embeddings", "sliding_window", "use_sliding_window"),
    *("max_window_layers", "layer_types", "rms_norm_eps", "rope_theta", "rope_scaling"),
    *("rope_parameters", "tie_word_embeddings", "attention_bias", "mlp_bias", "hidden_act"),
    *("eos_token_id", "quantization_config", "compression_config"),
    *("partial_rotary_factor", "no_rope_layers", "attn_logit_softcapping"),
    *("final_logit_softcapping", "logit_scale", "residual_multiplier", "embedding_multiplier"),
    *("num_local_experts", "num_experts"),
)
ROPE_KEYS = (
    *("rope_type", "type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor"),
    *("original_max_position_embeddings", "partial_rotary_factor"),
)
WRONG: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 7, 10**9, 2**31, 10**12, 10**400, -(10**400)),
    *(0.0, 0.5, 2.0, 2.5, -1.5, 1e300, 1e-300, float("nan"), float("inf"), -float("inf")),
    *("", "2", "no", "x" * 10**6, "line\nbreak", "\ud800", "\0", "Llama", "yarn", "int4"),
    *([], [1], [None], [[1]], ["x"], [2.5], [True], [-1], ["full_attention"], [10**400]),
    *({}, {"x": 1}, {"x": {}}, {"type": 3}, {"quant_method": ["awq"]}, {"rope_type": "yarn"}),
]
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def one_line(error: pytest.ExceptionInfo[CheckpointError]) -> str:
    line = str(error.value)
    assert 0 < len(line) <= MOST_LINE
    assert len(line.splitlines()) == 1
    line.encode()  # it can be written
    return line


def read(raw: dict[str, Any], named: tuple[str, ...]) -> None:
    """Serves it, or names one of the keys in one line."""
    try:
        made = ModelConfig.from_dict(raw)
    except CheckpointError:
        with pytest.raises(CheckpointError) as caught:
            ModelConfig.from_dict(raw)
        line = one_line(caught)
        assert "config.json" in line or "must be" in line
        assert any(key in line for key in named), line
    else:
        assert made.num_parameters > 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("key", KEYS)
def test_a_key_of_any_value_is_served_or_named(family: str, key: str) -> None:
    for value in WRONG:
        read(BASE | {"architectures": [f"{family}ForCausalLM"], key: value}, (key,))


@pytest.mark.parametrize("key", ROPE_KEYS)
def test_a_key_of_rope_of_any_value_is_served_or_named(key: str) -> None:
    for value in WRONG:
        for rope in ({"rope_type": "llama3", **LLAMA3}, {"type": "linear", "factor": 2.0}):
            for name in ("rope_scaling", "rope_parameters"):
                read(BASE | {name: rope | {key: value}}, (key, name))


@settings(max_examples=300, deadline=None)
@given(changes=st.dictionaries(st.sampled_from(KEYS), ANYTHING, min_size=1, max_size=3))
def test_keys_of_any_values_are_served_or_named(changes: dict[str, Any]) -> None:
    read(BASE | changes, tuple(changes))


class Watched(dict[str, Any]):
    """Notes which keys were asked for."""

    asked: set[str]

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)


def test_no_key_that_is_read_is_left_out_above() -> None:
    for table, keys in ((BASE, KEYS), ({"rope_type": "llama3", **LLAMA3}, ROPE_KEYS)):
        asked: set[str] = set()
        for family in FAMILIES:
            watched = Watched(table)
            watched.asked = asked
            architecture = {"architectures": [f"{family}ForCausalLM"]}
            if table is BASE:
                watched |= architecture
                ModelConfig.from_dict(watched)
            else:
                ModelConfig.from_dict(BASE | architecture | {"rope_scaling": watched})
        assert asked <= set(keys), asked - set(keys)


@pytest.mark.parametrize("value", WRONG, ids=lambda value: repr(value)[:20])
def test_end_of_sequence_ids_of_generation_config_are_token_ids(value: Any) -> None:
    """As those of config.json are."""
    outcomes = []
    for arguments in ((BASE | {"eos_token_id": value},), (BASE, {"eos_token_id": value})):
        try:
            outcomes.append(bool(ModelConfig.from_dict(*arguments).num_parameters))
        except CheckpointError as error:
            outcomes.append("json: eos_token_id must be a token id" in str(error))
    assert outcomes == [True, True]


# Files


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _large(path: Path) -> None:
    with path.open("ab") as file:
        file.truncate(100 << 20)


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut short": (lambda path: path.write_text('{"a": 1'), "cannot be read as JSON"),
    "empty": (lambda path: path.write_text(""), "cannot be read as JSON"),
    "not UTF-8": (lambda path: path.write_bytes(b'{"a": "\xff"}'), "utf-8"),
    "half a surrogate pair": (lambda path: path.write_text('{"a": ["\\ud83d"]}'), "surrogates"),
    "UTF-16": (lambda path: path.write_text("{}", encoding="utf-16"), "utf-8"),
    "a list": (lambda path: path.write_text("[1]"), "JSON object"),
    "a number": (lambda path: path.write_text("1"), "JSON object"),
    "null": (lambda path: path.write_text("null"), "JSON object"),
    "nested deeply": (lambda path: path.write_text("[" * 10**6), "recursion"),
    "nested deeply, closed": (
        lambda path: path.write_text('{"a":' * 10**5 + "1" + "}" * 10**5),
        "recursion",
    ),
    "a number without end": (lambda path: path.write_text('{"a": ' + "9" * 10**5 + "}"), "digits"),
    "a folder": (_folder, "it is no file"),
    "a pipe that nobody writes to": (_fifo, "it is no file"),
    "100 MB": (_large, f"more than {MOST_BYTES}"),
}


@pytest.mark.parametrize("wrong", FILES)
def test_a_file_that_is_no_json_object_is_named(tmp_path: Path, wrong: str) -> None:
    spoil, reason = FILES[wrong]
    for name in ("config.json", "generation_config.json", INDEX):
        path = tmp_path / name
        path.write_text("{}")
        spoil(path)
        with pytest.raises(CheckpointError, match=reason) as caught:
            read_json(path)
        assert one_line(caught).startswith(name)


def test_a_whole_surrogate_pair_is_one_character(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"a": "\\ud83d\\ude00"}')
    assert read_json(tmp_path / "config.json") == {"a": "\U0001f600"}


def test_of_equal_keys_the_last_counts_as_in_every_reader_of_json(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"a": 1, "a": 2}')
    assert read_json(tmp_path / "config.json") == {"a": 2}


def test_a_generation_config_that_is_a_folder_is_not_taken_for_none(tmp_path: Path) -> None:
    assert Folder(tmp_path).json("generation_config.json") == {}
    (tmp_path / "generation_config.json").mkdir()
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        Folder(tmp_path).json("generation_config.json")


# Weights


@pytest.fixture
def llama(saved: Callable[[str], Saved]) -> Path:
    return saved("llama").folder


@pytest.fixture
def folder(llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "outer" / "copy"))


@pytest.mark.parametrize("key", ["hidden_size", "vocab_size", "num_hidden_layers", "head_dim"])
def test_sizes_of_a_million_are_refused_before_memory_is_taken(folder: Path, key: str) -> None:
    """10**12 parameters and more, which a dtype is chosen for by measurement, too."""
    config = read_json(folder / "config.json") | {key: 10**6, "intermediate_size": 10**6}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config.json asks for|lacks tensor") as caught:
        load(folder, num_pages=1)
    one_line(caught)


def test_weights_beyond_the_memory_of_the_machine_are_refused() -> None:
    sizes = LLAMA | {"hidden_size": 2**20, "vocab_size": 2**20, "num_attention_heads": 2**10}
    huge = ModelConfig.from_dict(sizes | {"num_key_value_heads": 2**10})
    with pytest.raises(CheckpointError, match=r"no memory for \d+ parameters .* MiB of"):
        check_memory(huge, torch.bfloat16, torch.device("cpu"))


OUTSIDE: list[Any] = [
    *("../model.safetensors", "../../model.safetensors", "x/../../model.safetensors", ".."),
    *("", ".", "/etc/passwd", "sub/model.safetensors", "..\\model.safetensors", "~"),
    *("model.safetensors\0", "model\n.safetensors", "config.json", "pytorch_model.bin"),
    *(None, 1, 2.5, True, [], ["model.safetensors"], {}, "x" * 10**5, "\ud800.safetensors"),
]


@pytest.mark.parametrize("name", OUTSIDE, ids=lambda value: repr(value)[:20])
def test_an_index_names_files_of_its_own_folder_only(folder: Path, name: Any) -> None:
    """Those outside are there, and good: with `..` they would be served."""
    for place in (folder.parent, folder.parent.parent, folder / "sub"):
        place.mkdir(exist_ok=True)
        shutil.copy(folder / SINGLE, place)
    tensors = load_file(folder / SINGLE)
    index = {"weight_map": dict.fromkeys(tensors, name)}
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(
        CheckpointError, match=r"weight_map must name \.safetensors|surrogates"
    ) as caught:
        load(folder, num_pages=1)
    one_line(caught)


@pytest.mark.parametrize("weight_map", [None, [], "x", 3, {}, [["a", "b"]]])
def test_a_weight_map_is_an_object(folder: Path, weight_map: Any) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match="weight_map") as caught:
        load(folder, num_pages=1)
    one_line(caught)


def test_a_snapshot_of_the_hub_is_a_folder_of_links_out_of_it(llama: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--acme--tiny"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, path in enumerate(sorted(llama.iterdir())):
        shutil.copy(path, repository / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    index = {"weight_map": dict.fromkeys(load_file(llama / SINGLE), SINGLE)}
    (snapshot / INDEX).write_text(json.dumps(index))
    assert torch.equal(load_model(snapshot).embedding, load_model(llama).embedding)


def test_of_shards_that_overlap_the_one_that_the_index_names_counts(folder: Path) -> None:
    tensors = load_file(folder / SINGLE)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, folder / "other.safetensors")
    norm = "model.norm.weight"
    index = {"weight_map": dict.fromkeys(tensors, SINGLE) | {norm: "other.safetensors"}}
    (folder / INDEX).write_text(json.dumps(index))
    model = load_model(folder)
    assert torch.equal(model.norm, tensors[norm] + 1)
    assert torch.equal(model.embedding, tensors["model.embed_tokens.weight"])


@pytest.mark.parametrize("kind", ["qweight", "weight_packed", "weight.absmax"])
def test_quantized_weights_that_config_json_does_not_mention_are_named(
    folder: Path, kind: str
) -> None:
    tensors = load_file(folder / SINGLE)
    matrix = "model.layers.0.self_attn.q_proj"
    tensors[f"{matrix}.{kind}"] = tensors.pop(f"{matrix}.weight").to(torch.int32)
    save_file(tensors, folder / SINGLE)
    with pytest.raises(CheckpointError, match=rf"it has {matrix}.{kind}: quantized") as caught:
        load(folder, num_pages=1)
    one_line(caught)


def _headers(header: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """That lie about one tensor."""
    name = "model.norm.weight"
    truth = header[name]
    begin, end = truth["data_offsets"]
    for lie in (
        *({"shape": [2**60]}, {"shape": [2**63, 2]}, {"shape": []}, {"shape": "x"}),
        *({"shape": [-1]}, {"dtype": "F64"}, {"dtype": "BF16"}, {"dtype": 3}, {"dtype": "X"}),
        {"data_offsets": [begin, end + 4]},
        {"data_offsets": [0, end - begin]},
        {"data_offsets": [end, begin]},
        {"data_offsets": [2**63, 2**64 - 1]},
        {"data_offsets": None},
    ):
        yield header | {name: truth | lie}
    yield {name: truth}
    yield {}


def test_a_header_that_lies_is_named(folder: Path) -> None:
    data = (folder / SINGLE).read_bytes()
    size = int.from_bytes(data[:8], "little")
    config = Folder(folder).model_config()
    headers = [json.dumps(each).encode() for each in _headers(json.loads(data[8 : 8 + size]))]
    lying = [len(each).to_bytes(8, "little") + each + data[8 + size :] for each in headers]
    lengths = [number.to_bytes(8, "little") + data[8:] for number in (0, 1, 2**40, 2**64 - 1)]
    for content in (*lying, *lengths, b"", data[:7], data[: size // 2], data[:-1], data + b"x"):
        (folder / SINGLE).write_bytes(content)
        with pytest.raises(CheckpointError, match=r"safetensors|tensor") as caught:
            check_weights(Folder(folder), config)
        one_line(caught)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_bytes_of_a_header_turned_are_served_or_refused(folder: Path, data: st.DataObject) -> None:
    good = (folder.parent / "good") if (folder.parent / "good").exists() else folder / SINGLE
    content = bytearray(good.read_bytes())
    if good.parent == folder:
        (folder.parent / "good").write_bytes(content)
    size = int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, 8 + size))] = data.draw(st.integers(0, 255))
    (folder / SINGLE).write_bytes(content)
    with contextlib.suppress(CheckpointError):  # and nothing else
        load_model(folder)
