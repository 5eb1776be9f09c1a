"""The embedded model: its size, its tokenizer, its tensors' shapes, and that it knows English."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sentencepiece as spm
from safetensors import safe_open

FOLDER = Path(__file__).parents[2] / "engine" / "embedded"
PARTS = ("config.json", "model.safetensors", "tokenizer.model")
# A uniform guess over 2,048 tokens scores ln 2048 = 7.62 nats per token; both must be far below.
STORY = (
    "Once upon a time, there was a little fox named Nora. Nora loved to sing songs. One day, she "
    "found a bell in the garden. She took it home and gave it to her mom. They were very happy."
)
CHAT = (
    "User: What is a book?\nAssistant: A book is something that you can read with your mom and dad."
)


@pytest.fixture(scope="module")
def config() -> dict:
    return json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tokenizer() -> spm.SentencePieceProcessor:
    return spm.SentencePieceProcessor(model_file=str(FOLDER / "tokenizer.model"))


def test_the_folder_is_small() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert set(PARTS) <= {path.name for path in files}
    assert sum(path.stat().st_size for path in files) <= 8 * 2**20


@pytest.mark.parametrize(
    "text",
    [
        "naïve café — 日本語 🙂\n tab\t  two",
        "  leading and trailing  ",
        "",
        "\n\n",
        "a\u0301 ﬁ ½ \u200b \u00a0 non-normal forms stay as they are",
        "".join(map(chr, range(1, 0x250))),
        "1234567890 <s> </s>",
    ],
)
def test_the_tokenizer_round_trips(tokenizer: spm.SentencePieceProcessor, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.unk_id() not in ids
    assert tokenizer.decode(ids) == text


def test_special_ids(tokenizer: spm.SentencePieceProcessor, config: dict) -> None:
    assert (tokenizer.unk_id(), tokenizer.bos_id(), tokenizer.eos_id()) == (0, 1, 2)
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)
    assert tokenizer.vocab_size() == config["vocab_size"]


def test_tensors_have_the_shapes_the_config_says(config: dict) -> None:
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["tie_word_embeddings"]
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    expected = {"model.embed_tokens.weight": [config["vocab_size"], hidden]}
    expected["model.norm.weight"] = [hidden]
    layer = {
        "self_attn.q_proj": [queries, hidden],
        "self_attn.k_proj": [keys, hidden],
        "self_attn.v_proj": [keys, hidden],
        "self_attn.o_proj": [hidden, queries],
        "mlp.gate_proj": [inner, hidden],
        "mlp.up_proj": [inner, hidden],
        "mlp.down_proj": [hidden, inner],
        "input_layernorm": [hidden],
        "post_attention_layernorm": [hidden],
    }
    for index in range(config["num_hidden_layers"]):
        expected |= {f"model.layers.{index}.{name}.weight": dims for name, dims in layer.items()}
    with safe_open(FOLDER / "model.safetensors", framework="pt") as tensors:
        found = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
        assert {name: part.get_shape() for name, part in found.items()} == expected
        assert {part.get_dtype() for part in found.values()} == {"BF16"}


@pytest.mark.parametrize(("text", "bound"), [(STORY, 2.5), (CHAT, 3.5)])
def test_it_models_stories_and_chats(
    tokenizer: spm.SentencePieceProcessor, text: str, bound: float
) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.LlamaForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    ids = torch.tensor([[tokenizer.bos_id(), *tokenizer.encode(text)]])
    with torch.no_grad():
        assert model(ids, labels=ids).loss.item() < bound
