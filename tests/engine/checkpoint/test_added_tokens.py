"""Added tokens are taken out of a text as by Hugging Face's tokenizers, whatever their flags."""

from __future__ import annotations

import tokenizers
from hypothesis import example, given, reject, settings
from hypothesis import strategies as st

from engine.checkpoint.added_tokens import AddedToken, AddedTokens

CHARACTERS = "ab_<> \t\n\u3000\u0301²é\x1c\u200dⒶ"
TEXTS = st.text(CHARACTERS, max_size=12)
TOKENS = st.builds(
    AddedToken,
    content=st.text(CHARACTERS, min_size=1, max_size=3),
    lstrip=st.booleans(),
    rstrip=st.booleans(),
    single_word=st.booleans(),
    normalized=st.booleans(),
    special=st.booleans(),
)


def library(tokens: list[AddedToken]) -> tokenizers.Tokenizer:
    """One that knows each character and nothing longer."""
    vocabulary = {char: i for i, char in enumerate(CHARACTERS)}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    for token in tokens:
        flags = {name: getattr(token, name) for name in ("lstrip", "rstrip", "single_word")}
        added = tokenizers.AddedToken(
            token.content, normalized=token.normalized, special=token.special, **flags
        )
        made.add_tokens([added])
    return made


def ids_of(made: tokenizers.Tokenizer, text: str) -> list[int]:
    """The library has a mistake where tokens that strip what is around them meet."""
    try:
        return made.encode(text).ids
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        reject()


@settings(deadline=None, max_examples=250)
@given(
    tokens=st.lists(TOKENS, max_size=5, unique_by=lambda token: token.content),
    texts=st.lists(TEXTS, min_size=1, max_size=5),
)
@example([AddedToken(" ", rstrip=True), AddedToken("  <", lstrip=True)], ["a    <b", "    "])
@example([AddedToken("a", single_word=True), AddedToken("a<", rstrip=True)], ["a<b a a<"])
def test_any_tokens_are_found_where_the_library_finds_them(
    tokens: list[AddedToken], texts: list[str]
) -> None:
    theirs = library(tokens)
    ids = [(token, theirs.token_to_id(token.content)) for token in tokens]
    ours = AddedTokens([(token, token_id) for token, token_id in ids])
    for text in texts + [text + token.content + text for token in tokens for text in texts]:
        found: list[int] = []
        for part in ours.split(text):
            found += [part] if isinstance(part, int) else [CHARACTERS.index(char) for char in part]
        assert found == ids_of(theirs, text)
        assert ours.occur_in(text) or len(ours.split(text)) <= 1


def test_no_tokens_are_found_where_there_are_none() -> None:
    assert AddedTokens([]).split("a b") == ["a b"]
    assert AddedTokens([]).split("") == []
    assert not AddedTokens([]).occur_in("a")
