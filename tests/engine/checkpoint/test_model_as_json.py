"""A tokenizer.json that is made of a tokenizer.model gives the same ids and the same text."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2 as sp

from engine.checkpoint.model_as_json import NotExpressible, as_tokenizer_json
from engine.checkpoint.tokenizer import Tokenizer
from engine.checkpoint.tokenizer_model import SentencePiece
from engine.embedded import FOLDER
from tests.engine.checkpoint import hostile
from tests.engine.checkpoint.test_tokens_as_transformers import FLAGS, decoder_from, train, write

LLAMA = {"tokenizer_class": "LlamaTokenizer"}
SQUEEZES = {"remove_extra_whitespaces": True}
NO_BYTES = {"byte_fallback": False, "vocab_size": 120}
SYMBOLS = ["<ud>", "\n\n", "\u2581\u2581", "ab", "abc", "er", "the", "9"]
DEFINED = {"user_defined_symbols": SYMBOLS}
UNIGRAM = {"model_type": "unigram", "vocab_size": 320}
CHAR = {"model_type": "char", "vocab_size": 320}
ACROSS = {"split_by_whitespace": False, "split_by_unicode_script": False, "split_by_number": False}
# How a model is trained, and what stands beside it.
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "bpe": ({}, {}),
    "bpe, first space only": ({}, {"legacy": False}),
    "bpe, no first space": ({"add_dummy_prefix": False}, {}),
    "bpe, spaces squeezed": (SQUEEZES, {}),
    "bpe, pieces across words": (ACROSS, {}),
    "bpe without bytes": (NO_BYTES, {}),
    "bpe, symbols": (DEFINED, {}),
    "bpe, symbols, first space only": (DEFINED, {"legacy": False}),
    "bpe, symbols, spaces squeezed": (DEFINED | SQUEEZES, {}),
    "bpe without bytes, symbols": (DEFINED | NO_BYTES | {"vocab_size": 140}, {}),
    "llama": ({}, LLAMA),
    "llama, first space only": ({}, LLAMA | {"legacy": False}),
    "llama, every space": ({}, LLAMA | {"legacy": True}),
    "llama, no first space": ({}, LLAMA | {"add_prefix_space": False}),
    "llama, symbols": (DEFINED, LLAMA | {"legacy": True}),
    "llama of a model that normalizes": (
        SQUEEZES | {"normalization_rule_name": "nmt_nfkc"},
        LLAMA,
    ),
    "char": (CHAR, {}),
    "char, symbols": (CHAR | DEFINED, {}),
    "char without bytes": (CHAR | {"byte_fallback": False, "vocab_size": 60}, {}),
    "unigram": (UNIGRAM, {}),
    "unigram, pieces across words": (UNIGRAM | ACROSS, {}),
    "unigram, spaces squeezed": (UNIGRAM | SQUEEZES, {}),
    "unigram without bytes": (UNIGRAM | {"byte_fallback": False, "vocab_size": 70}, {}),
    "unigram, llama": (UNIGRAM, LLAMA),
    "unknown is no special token": (NO_BYTES, {"unk_token": None}),
}
HOSTILE = st.one_of(
    st.lists(st.sampled_from([*hostile.PARTS, *FLAGS, *SYMBOLS]), max_size=12).map("".join),
    st.text(max_size=20),
)


class Pair:
    """A sentencepiece model, and the tokenizer.json that is made of it."""

    def __init__(self, folder: Path) -> None:
        self.ours = Tokenizer.load(folder)
        assert isinstance(self.ours.backend, SentencePiece)
        made = as_tokenizer_json(self.ours.backend)
        self.kind = made["model"]["type"]
        self.scores = (
            [score for _, score in made["model"]["vocab"]] if self.kind == "Unigram" else []
        )
        self.theirs = tokenizers.Tokenizer.from_str(json.dumps(made))

    def compare(self, text: str) -> None:
        ours = self.ours.encode(text, add_bos=False)
        theirs = self.theirs.encode(text, add_special_tokens=False).ids
        if self.kind == "Unigram" and ours != theirs:  # both are best, to single precision
            assert self.ours.decode(ours) == self.ours.decode(theirs)
            assert self.score(theirs) == pytest.approx(self.score(ours), rel=1e-6)
        else:
            assert theirs == ours

    def score(self, ids: Sequence[int]) -> float:
        return sum(self.scores[token_id] for token_id in ids if token_id < len(self.scores))


def made_of(folder: Path, options: dict[str, Any], stated: dict[str, Any]) -> Path:
    train(folder, hard_vocab_limit=False, **options)
    size = len(proto_of(folder).pieces)
    write(folder, "tokenizer_config.json", {"added_tokens_decoder": decoder_from(size)} | stated)
    return folder


def proto_of(folder: Path) -> sp.ModelProto:
    return sp.ModelProto.FromString((folder / "tokenizer.model").read_bytes())


@pytest.fixture(scope="module")
def pair_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    """Each kind of model is trained once, when it is asked for."""
    return cache(lambda kind: Pair(made_of(tmp_path_factory.mktemp("model"), *KINDS[kind])))


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_texts_become_the_same_ids(kind: str, pair_of: Callable[[str], Pair]) -> None:
    for text in hostile.texts(60):
        pair_of(kind).compare(text)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=25)
@given(text=HOSTILE)
def test_any_text_becomes_the_same_ids(
    kind: str, pair_of: Callable[[str], Pair], text: str
) -> None:
    pair_of(kind).compare(text)


def test_a_large_text_becomes_the_same_ids_with_the_embedded_model() -> None:
    pair = Pair(FOLDER)
    pair.compare(hostile.documents())
    for text in hostile.texts(600):
        pair.compare(text)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_any_ids_become_the_text_that_continues_a_prompt(
    kind: str, pair_of: Callable[[str], Pair], data: st.DataObject
) -> None:
    """At once, and token by token as a gateway streams; so far as the bytes are UTF-8."""
    pair = pair_of(kind)
    size = pair.ours.vocab_size
    near_end = st.integers(size - 12, size - 1)
    ids = data.draw(st.lists(st.one_of(st.integers(0, 12), st.integers(0, size - 1), near_end)))
    detokenizer = pair.ours.detokenizer(pair.ours.encode("the fox"))
    expected = "".join([*map(detokenizer.feed, ids), detokenizer.finish()])
    if "\ufffd" not in expected:
        assert pair.theirs.decode(ids, skip_special_tokens=True) == expected
        stream = tokenizers.decoders.DecodeStream(skip_special_tokens=True)
        steps = [stream.step(pair.theirs, token_id) for token_id in ids]
        assert "".join(filter(None, steps)) == expected


def test_text_comes_back_after_its_first_space(pair_of: Callable[[str], Pair]) -> None:
    pair = pair_of("llama, every space")
    text = "Zwölf 👩\u200d👧 漢字\r\n  over\tthe\x00 e\u0301"
    ids = pair.theirs.encode(text).ids
    assert pair.theirs.decode(ids) == " " + text
    assert pair.ours.decode(ids) == text


def test_bos_is_never_added(pair_of: Callable[[str], Pair]) -> None:
    """Nor where special tokens are asked for: it is the server that adds them."""
    pair = pair_of("llama")
    assert pair.ours.encode("the fox")[0] == pair.ours.bos_id
    assert pair.theirs.encode("the fox").ids == pair.ours.encode("the fox", add_bos=False)


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "words": ({"model_type": "word", "vocab_size": 285}, {}, "kind word"),
    "rules": ({"normalization_rule_name": "nmt_nfkc"}, {}, r"rules .*'nmt_nfkc'.* no exact form"),
    "suffix": ({"treat_whitespace_as_suffix": True}, {}, "treat_whitespace_as_suffix"),
    "split": ({}, {"split_special_tokens": True}, "split_special_tokens"),
    "a space": (SQUEEZES | {"user_defined_symbols": ["a b"]}, {}, "has a space in it"),
    "squeezed": (SQUEEZES, {"legacy": False}, "remove_extra_whitespaces"),
    "symbols": (UNIGRAM | DEFINED, {}, "user-defined symbols of a unigram"),
    "a byte": ({}, {"added_tokens_decoder": {"400": {"content": "<0x41>"}}}, "like a byte"),
    "gap": (UNIGRAM, {"added_tokens_decoder": {"500": {"content": "<x>"}}}, "leave some out"),
    "renamed": (UNIGRAM, {"added_tokens_decoder": {"5": {"content": "<x>"}}}, "id of a piece"),
    "one id": (
        UNIGRAM,
        {"added_tokens_decoder": {"320": {"content": "<x>"}}, "pad_token": "<y>"},
        "one id",
    ),
    "found": (
        UNIGRAM | {"control_symbols": ["<c>"]},
        {"added_tokens_decoder": {"3": {"content": "<c>", "single_word": True}}},
        "would be found in texts",
    ),
}


@pytest.mark.parametrize(("options", "stated", "message"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_form_is_refused_by_name(
    options: dict[str, Any], stated: dict[str, Any], message: str, tmp_path: Path
) -> None:
    if stated.get("pad_token") == "<y>":
        write(tmp_path, "added_tokens.json", {"<y>": 320})
    with pytest.raises(NotExpressible, match=message):
        Pair(made_of(tmp_path, options, stated))


def changed(folder: Path, change: Callable[[sp.ModelProto], object]) -> Path:
    """A trained model, changed by hand."""
    made_of(folder, {}, {})
    proto = proto_of(folder)
    change(proto)
    (folder / "tokenizer.model").write_bytes(proto.SerializeToString())
    return folder


def _same_score(proto: sp.ModelProto) -> None:
    for piece in proto.pieces[270:]:
        piece.score = 0


def _unused(proto: sp.ModelProto) -> None:
    proto.pieces[270].type = sp.ModelProto.SentencePiece.UNUSED


def _control_character(proto: sp.ModelProto) -> None:
    next(p for p in proto.pieces if p.piece == "q").type = sp.ModelProto.SentencePiece.CONTROL


def _unescaped(proto: sp.ModelProto) -> None:
    proto.normalizer_spec.escape_whitespaces = False


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_unescaped, "escape_whitespaces"),
        (_same_score, "have one score"),
        (_unused, "an unused piece"),
        (_control_character, "a character that is no piece itself"),
    ],
)
def test_a_model_changed_by_hand_is_refused_by_name(
    change: Callable[[sp.ModelProto], object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(NotExpressible, match=message):
        Pair(changed(tmp_path, change))


def test_a_visible_space_of_an_added_token_is_a_space(tmp_path: Path) -> None:
    """As transformers spells it."""
    stated = {"400": {"content": "\u2581\u2581x"}}
    pair = Pair(made_of(tmp_path, {}, {"added_tokens_decoder": stated}))
    ids = pair.ours.encode("a\u2581\u2581xb", add_bos=False)
    assert 400 in ids
    assert pair.theirs.decode(ids) == " " + pair.ours.decode(ids) == " a  x b"


PIECES = st.lists(st.text("ab\u2581<0x1>", min_size=1, max_size=6), min_size=1, max_size=14)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_models_of_any_pieces_make_the_same_ids(data: st.DataObject) -> None:
    """Of pieces that no training makes, in any order, some of them user-defined symbols."""
    pieces = data.draw(PIECES)
    chars = [*dict.fromkeys("".join(pieces))]
    order = data.draw(st.permutations([*dict.fromkeys([*pieces, *chars])]))
    defined = data.draw(st.sets(st.sampled_from(order), max_size=3))
    proto = sp.ModelProto()
    proto.trainer_spec.model_type = sp.TrainerSpec.BPE
    proto.trainer_spec.byte_fallback = data.draw(st.booleans())
    proto.normalizer_spec.add_dummy_prefix = data.draw(st.booleans())
    proto.normalizer_spec.remove_extra_whitespaces = data.draw(st.booleans())
    kinds = sp.ModelProto.SentencePiece
    proto.pieces.add(piece="<unk>", type=kinds.UNKNOWN)
    for byte in range(256 if proto.trainer_spec.byte_fallback else 0):
        proto.pieces.add(piece=f"<0x{byte:02X}>", type=kinds.BYTE)
    for rank, piece in enumerate(order):
        kind = kinds.USER_DEFINED if piece in defined else kinds.NORMAL
        proto.pieces.add(piece=piece, score=-rank, type=kind)
    texts = st.lists(st.sampled_from([*order, " ", "x", "<0x41>"]), max_size=10).map("".join)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tokenizer.model").write_bytes(proto.SerializeToString())
        try:
            pair = Pair(Path(folder))
        except NotExpressible:  # a part between symbols that is a token, and cannot be cut
            return
        for text in data.draw(st.lists(texts, min_size=1, max_size=5)):
            pair.compare(text)


def test_an_added_token_may_have_the_id_of_a_piece_and_ids_may_be_left_out(tmp_path: Path) -> None:
    """As where a reserved piece gets a meaning later."""
    stated = {"5": {"content": "<x>"}, "600": {"content": "<y>", "special": True}}
    pair = Pair(made_of(tmp_path, {}, {"added_tokens_decoder": stated}))
    assert pair.theirs.encode("a<x>b<y>").ids == pair.ours.encode("a<x>b<y>", add_bos=False)
    assert pair.theirs.decode([5, 600, 5]) == pair.ours.decode([5, 600, 5]) == "<x><x>"
