"""A template is rendered as jinja2 renders it, and computes nothing before that."""

from __future__ import annotations

import tracemalloc

import pytest

from engine.checkpoint.chat import ChatTemplate


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'x' * 100000000 }}",
        "{{ 'x'|center(100000000) }}",
        "{% set text = 'x' * 100000000 %}",
        "{% if 'x' * 100000000 %}{% endif %}",
        "{{ 'a' ~ 'x' * 100000000 ~ bos_token }}",
    ],
)
def test_constants_are_not_computed_when_it_is_read(source: str) -> None:
    tracemalloc.start()
    try:
        template = ChatTemplate(source, {})
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()
    assert template.token_names == (["bos_token"] if "bos_token" in source else [])


def test_constants_and_what_is_undefined_are_written_as_ever() -> None:
    source = "{{ 6 * 7 }}{{ ' a'|trim }}{{ none }}{{ nobody }}{{ 'b' ~ 1.5 }}{{ [true] }} {{ '' }}"
    assert ChatTemplate(source, {}).render([]) == "42aNoneb1.5[True] "


def test_half_a_pair_of_surrogates_is_refused() -> None:
    """A tokenizer gets text of which there are bytes, whatever a template writes."""
    with pytest.raises(ValueError, match="the chat template refuses the messages: Unicode"):
        ChatTemplate(r"{{ '\ud800' }}", {}).render([])
