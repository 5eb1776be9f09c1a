"""Chat templates: they make of a conversation the text that a checkpoint was trained on.

A template is Jinja source out of the checkpoint. It is rendered in a sandbox as Hugging Face's
`apply_chat_template` does it: with the same block trimming, `raise_exception`, `strftime_now`, a
`tojson` that leaves HTML characters alone, and `{% generation %}` blocks, which matter in
training only. Nothing of it is computed before it is rendered, be it constant: rendering is what
can be given limits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, meta, nodes, pass_context
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment


class ChatTemplate:
    """A template and the special tokens that it may name. Raises ValueError for source that does
    not parse.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self.source = source
        self.special_tokens = dict(special_tokens)
        environment = _environment()
        try:
            self._template = environment.from_string(source)
            used = _undeclared(environment, source)
        except Exception as error:  # jinja2's, or Python's, which compiles what jinja2 writes
            raise ValueError(f"the chat template does not parse: {error}") from error
        self.token_names = sorted(name for name in used if name.endswith("_token"))
        # Such as "bos_token": written, they come out as nothing.
        self.unknown_names = [name for name in self.token_names if name not in special_tokens]

    def render(
        self,
        messages: Sequence[Mapping[str, str]],
        add_generation_prompt: bool = True,
        most_chars: int | None = None,
    ) -> str:
        """Returns the conversation as text, ready for the assistant's turn.

        Raises ValueError where the template refuses the messages, fails for them in any way (it is
        a program out of the checkpoint), or writes more than `most_chars`.
        """
        try:
            parts = self._template.generate(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
                **self.special_tokens,
            )
            text = _join(parts, most_chars)
            text.encode()  # half a pair of surrogates has no bytes
            return text
        except _TooLong:
            raise ValueError(
                f"the conversation is written in over {most_chars} characters"
            ) from None
        except TemplateError as error:
            raise ValueError(f"the chat template refuses the messages: {error}") from error
        except Exception as error:
            kind = type(error).__name__
            text = f"the chat template refuses the messages: {kind}: {error}"
            raise ValueError(text) from error


class _TooLong(Exception):
    """The text became longer than is wanted."""


def _join(parts: Iterable[str], most_chars: int | None) -> str:
    """Returns the parts as one text. Raises _TooLong as soon as that is too long, before the
    template writes more.
    """
    written, num_chars = [], 0
    for part in parts:
        written.append(part)
        num_chars += len(part)
        if most_chars is not None and num_chars > most_chars:
            raise _TooLong
    return "".join(written)


def _undeclared(environment: ImmutableSandboxedEnvironment, source: str) -> set[str]:
    """Returns the names of the variables that a template is to be given."""
    generator = meta.TrackingCodeGenerator(environment)
    generator.optimizer = None
    generator.visit(environment.parse(source))
    return generator.undeclared_identifiers


class _Generation(Extension):
    """The block `{% generation %}...{% endgeneration %}`, which stands for its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it as an instance attribute

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, loopcontrols],
        optimized=False,
        finalize=_as_it_is,
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


@pass_context
def _as_it_is(context: Context, value: object) -> object:
    """What is written goes through here. Since that takes a context, jinja2 computes no constant
    when it compiles.
    """
    return value


def _to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False, **more: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **more)


def _raise(message: str) -> None:
    raise TemplateError(message)
