"""The `tokenizer.json` that reads and spells as a `tokenizer.model` does: for gateways that make
token ids with Hugging Face's tokenizers.

It is built from sentencepiece's own file and from what the files beside it say, so that it gives
the ids that `tokenizer_model.SentencePiece` gives, of any text. What cannot be said in that format
is refused by name. It puts nothing before or after a prompt, since the server does that itself,
and its decoder spells an output that continues a prompt: the first space stays.

How sentencepiece encodes is in its `normalizer.cc`, `bpe_model.cc` and `unigram_model.cc`; how the
file is followed in tokenizers' `models`, `normalizers` and `pre_tokenizers`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

from sentencepiece import sentencepiece_model_pb2 as sp

from engine.checkpoint.added_tokens import as_json
from engine.checkpoint.detokenizer import SPACE
from engine.checkpoint.json_file import CheckpointError, shown
from engine.checkpoint.tokenizer_json import BYTE_TOKEN
from engine.checkpoint.tokenizer_model import SentencePiece

_UNIGRAM, _BPE, _CHAR = (sp.TrainerSpec.UNIGRAM, sp.TrainerSpec.BPE, sp.TrainerSpec.CHAR)
_Piece = sp.ModelProto.SentencePiece
_KINDS = {_UNIGRAM: "unigram", _BPE: "bpe", _CHAR: "char"}


class NotExpressible(CheckpointError):
    """A tokenizer has a rule for which `tokenizer.json` has no form. The message names it."""


def as_tokenizer_json(model: SentencePiece) -> dict[str, Any]:
    """Returns the tokenizer.json of a sentencepiece model. Raises NotExpressible."""
    return _Conversion(model).made()


class _Conversion:
    """One model, its pieces by kind, and what the file is made of."""

    def __init__(self, model: SentencePiece) -> None:
        self._model = model
        self._proto = sp.ModelProto.FromString(model.serialized)
        self._kind = self._proto.trainer_spec.model_type
        self._has_bytes = self._proto.trainer_spec.byte_fallback
        pieces = self._proto.pieces
        self._normal = {p.piece: p.score for p in pieces if p.type == _Piece.NORMAL}
        self._defined = [p.piece for p in pieces if p.type == _Piece.USER_DEFINED]
        self._ids = {piece.piece: token_id for token_id, piece in enumerate(pieces)}
        # One character stands for itself anyway: only longer ones are taken out first.
        whole = [text for text in self._defined if len(text) > 1]
        self._whole = sorted(whole, key=len, reverse=True) if self._kind != _UNIGRAM else []

    def made(self) -> dict[str, Any]:
        self._check()
        model = self._unigram() if self._kind == _UNIGRAM else self._bpe()
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": as_json(self._model.tokens),
            "normalizer": self._normalizer(),
            "pre_tokenizer": _sequence("pretokenizers", list(self._pre_tokenizers())),
            "post_processor": None,
            "decoder": _sequence("decoders", list(self._decoders())),
            "model": model,
        }

    def _check(self) -> None:
        """Raises NotExpressible for what neither kind of model can say."""
        rules, trainer = self._proto.normalizer_spec, self._proto.trainer_spec
        if self._kind not in _KINDS:
            raise NotExpressible("tokenizer.model is of the kind word, not bpe, unigram or char")
        if self._model.splits_special:
            raise NotExpressible("split_special_tokens has no form in tokenizer.json")
        if trainer.treat_whitespace_as_suffix:
            raise NotExpressible("treat_whitespace_as_suffix has no form in tokenizer.json")
        if not rules.escape_whitespaces:
            raise NotExpressible("escape_whitespaces: false has no form in tokenizer.json")
        if rules.precompiled_charsmap and not self._model.is_llama:
            raise NotExpressible(
                f"the normalization rules of tokenizer.model ({shown(rules.name)}) have no exact"
                " form in tokenizer.json; only identity has one"
            )
        squeezes = rules.remove_extra_whitespaces and not self._model.is_llama
        if squeezes and self._model.has_prefix and not self._model.prefixes_all:
            raise NotExpressible(  # since tokenizers forgets where a text began
                "remove_extra_whitespaces has no form in tokenizer.json where legacy is false"
            )
        if squeezes and any(" " in text for text in self._defined):
            raise NotExpressible("a user-defined symbol of tokenizer.model has a space in it")
        for content, (token, _) in self._model.tokens.items():
            if self._has_bytes and not token.special and BYTE_TOKEN.fullmatch(content):
                raise NotExpressible(f"the added token {shown(content)} is written like a byte")
        for piece in self._proto.pieces:
            if piece.type == _Piece.UNUSED and not self._is_padding(piece.piece):
                raise NotExpressible(f"tokenizer.model has an unused piece: {shown(piece.piece)}")

    def _is_padding(self, text: str) -> bool:
        """Returns whether an unused piece is one that no text becomes: of whatever two parts it is
        put together, one is no piece.
        """
        parts = ((text[:i], text[i:]) for i in range(1, len(text)))
        return (
            self._kind == _BPE
            and len(text) > 1
            and not any(left in self._ids and right in self._ids for left, right in parts)
        )

    def _remains(self, text: str) -> bool:
        """Returns whether a text may stand in what the added tokens leave of a prompt."""
        tokens = self._model.tokens
        is_kept = any(token.single_word and text in c for c, (token, _) in tokens.items())
        return is_kept or text not in tokens

    def _normalizer(self) -> dict[str, Any] | None:
        if self._model.is_llama:  # nothing: tokens that are normalized are sought in the text
            return None
        steps = [_replace({"String": " "}, SPACE)]
        if self._proto.normalizer_spec.remove_extra_whitespaces:
            steps = [
                _replace({"Regex": r"\A +"}, ""),
                _replace({"Regex": " {2,}"}, " "),
                *steps,
                _replace({"Regex": rf"{SPACE}+\z"}, ""),
            ]
        return _sequence("normalizers", steps)

    def _pre_tokenizers(self) -> Iterator[dict[str, Any]]:
        """Yields what puts the space before a text, and what cuts it where nothing is merged."""
        scheme = "never"
        if self._model.has_prefix:
            scheme = "always" if self._model.prefixes_all else "first"
        if self._model.is_llama:  # none before a space that is there
            yield _metaspace(SPACE, scheme)
        elif scheme != "never":  # no text begins with a space by now, so this always puts one
            yield from (_metaspace(" ", scheme), _metaspace(SPACE, "never"))
        if self._whole:
            yield _split("|".join(map(re.escape, self._whole)), "Isolated")
            yield from self._cuts()
        elif self._kind == _UNIGRAM and self._has_bytes:
            yield self._cut_of_bytes()

    def _decoders(self) -> Iterator[dict[str, Any]]:
        unknown_id = self._proto.trainer_spec.unk_id
        if spelled := self._model.spelling.of(unknown_id):
            unknown = re.escape(self._proto.pieces[unknown_id].piece)
            yield _replace({"Regex": rf"\A{unknown}\z"}, spelled.decode())
        yield _replace({"String": SPACE}, " ")
        if self._has_bytes:
            yield {"type": "ByteFallback"}
        yield {"type": "Fuse"}

    def _bpe(self) -> dict[str, Any]:
        """Returns a model of merges, which has none where each character is a piece (char)."""
        added = {content: token_id for content, (_, token_id) in self._model.tokens.items()}
        vocabulary = self._ids | added
        for text in vocabulary.keys() - self._normal.keys() - set(self._defined):
            if len(text) == 1 and self._remains(text):
                raise NotExpressible(f"the token {shown(text)} is also a character")
        return {
            "type": "BPE",
            "dropout": None,
            "unk_token": self._proto.pieces[self._proto.trainer_spec.unk_id].piece,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": self._has_bytes,
            "ignore_merges": bool(self._whole),
            "vocab": vocabulary,
            "merges": self._merges() if self._kind == _BPE else [],
        }

    def _merges(self) -> list[tuple[str, str]]:
        """Returns the pairs that become one piece, in the order in which that is done: by the score
        of what they become, whatever they are.
        """
        normal = self._normal
        alone = {piece for piece in (*normal, *self._defined) if len(piece) == 1}
        ranked = []
        for piece, score in normal.items():
            pairs = [
                (piece[:i], piece[i:])
                for i in range(len(piece) - 1, 0, -1)
                if piece[:i] in normal and piece[i:] in normal
            ]
            if len(piece) > 1 and not alone.issuperset(piece):
                raise NotExpressible(
                    f"the piece {shown(piece)} has a character that is no piece itself"
                )
            if pairs:
                ranked.append((-score, pairs))
        ranked.sort(key=lambda entry: entry[0])
        for (score, pairs), (other, others) in itertools.pairwise(ranked):
            if not score < other:
                raise NotExpressible(
                    f"the pieces {shown(''.join(pairs[0]))} and {shown(''.join(others[0]))} of"
                    " tokenizer.model have one score: which goes first depends on where they stand"
                )
        return [pair for _, pairs in ranked for pair in pairs]

    def _unigram(self) -> dict[str, Any]:
        """Returns a model of scores. Its pieces are found in any text, so none may be there that
        sentencepiece would not find.
        """
        self._check_ids()
        if self._defined:  # what they score is no part of the file
            raise NotExpressible(
                "user-defined symbols of a unigram tokenizer.model weigh what the version of"
                " sentencepiece has them weigh"
            )
        least = min(self._normal.values(), default=0.0)
        scores = []
        for piece in self._proto.pieces:
            is_normal = piece.type == _Piece.NORMAL
            if not is_normal and piece.type != _Piece.BYTE and self._remains(piece.piece):
                raise NotExpressible(f"{shown(piece.piece)} would be found in texts")
            scores.append((piece.piece, piece.score if is_normal else least))
        return {
            "type": "Unigram",
            "unk_id": self._proto.trainer_spec.unk_id,
            "vocab": scores,
            "byte_fallback": self._has_bytes,
        }

    def _check_ids(self) -> None:
        """Raises NotExpressible for added tokens whose ids do not follow those of the pieces."""
        size = len(self._proto.pieces)
        beyond = sorted({i for _, i in self._model.tokens.values() if i >= size})
        if beyond != list(range(size, size + len(beyond))):
            raise NotExpressible("the ids of added tokens leave some out")
        for content, (_, token_id) in self._model.tokens.items():
            if token_id < size and self._ids.get(content) != token_id:
                raise NotExpressible(f"the added token {shown(content)} has the id of a piece")
        if len(beyond) != sum(i >= size for _, i in self._model.tokens.values()):
            raise NotExpressible("two added tokens have one id")

    def _cut_of_bytes(self) -> dict[str, Any]:
        """Returns what keeps a text like "<0x41>" from being taken for the piece of a byte: a cut
        where no piece is.
        """
        hexadecimal = "[0-9A-F]"
        for before, after in (("<", "0"), ("0", "x"), ("x", hexadecimal), (hexadecimal, ">")):
            if not any(re.search(before + after, piece) for piece in self._normal):
                ahead = {"0": r"0x[0-9A-F]{2}>", "x": r"x[0-9A-F]{2}>", ">": ">"}
                behind = {"<": "<", "0": "<0", "x": "<0x", hexadecimal: r"<0x[0-9A-F]{2}"}
                return _split(
                    rf"{behind[before]}(?={ahead.get(after, r'[0-9A-F]{2}>')})",
                    "MergedWithPrevious",
                )
        raise NotExpressible("the pieces of tokenizer.model overlap with how bytes are written")

    def _cuts(self) -> Iterator[dict[str, Any]]:
        """Yields what cuts texts that are a token as a whole, and that sentencepiece does not make
        of it: where user-defined symbols are, a part that is a token becomes that at once.
        """
        anywhere = re.compile("|".join(map(re.escape, self._whole)))
        tokens = {content: token_id for content, (_, token_id) in self._model.tokens.items()}
        texts = [t for t in self._ids | tokens if len(t) > 1 and not anywhere.search(t)]
        ids = self._model.plainly(texts)
        wrong = {
            text: found
            for text, found in zip(texts, ids, strict=True)
            if found != [(self._ids | tokens)[text]] and self._remains(text)
        }
        cuts = []
        for text, found in wrong.items():
            parts = ((text[:i], text[i:]) for i in range(1, len(text)))
            for left, right in parts:
                one, other = self._model.plainly([left, right])
                if one + other == found and left not in wrong and right not in wrong:
                    cuts.append(rf"{re.escape(left)}(?={re.escape(right)}\z)")
                    break
            else:
                raise NotExpressible(f"{shown(text)} would be taken for one token")
        if cuts:
            yield _split(rf"\A(?:{'|'.join(cuts)})", "MergedWithPrevious")


def _sequence(key: str, steps: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    return {"type": "Sequence", key: list(steps)} if steps else None


def _replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _metaspace(space: str, scheme: str) -> dict[str, Any]:
    return {
        "type": "Metaspace",
        "replacement": space,
        "prepend_scheme": scheme,
        "split": False,
    }


def _split(pattern: str, behavior: str) -> dict[str, Any]:
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": behavior,
        "invert": False,
    }
