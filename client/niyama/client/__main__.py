"""The command `niyama "prompt"`, which streams the output and then prints timings.

`python -m niyama.client` is the same, and so is `python -m client` where the server is installed.

Other uses are `info`, `estimate`, `explain ID` and `count "text"`; `generate "info"` is for a
prompt that is one of these words, and `-` for a prompt on standard input. The text goes to standard
output, everything else to standard error. The exit status is 0; 1 when the call failed or the text
cannot be written; 2 for arguments that make no call; 130 when interrupted.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from typing import Any, cast

from niyama.client import flags, words
from niyama.client.client import Client
from niyama.client.connection import DEFAULT_SERVER
from niyama.client.errors import InvalidRequest, NiyamaError, NotFound
from niyama.client.options import ConnectionOptions, GenerateOptions, QosOptions
from niyama.client.terminal import discard_output, have_streams, printable, write_any_character
from niyama.client.values import (
    Accepted,
    Estimate,
    Explanation,
    Relegated,
    ServerInfo,
    Tokens,
)

SERVER = "NIYAMA_SERVER"

MOST_COMPLETIONS = 1024  # of a request, whose stories are asked for

_SAMPLING_FLAGS: tuple[tuple[str, type, str], ...] = (
    ("max-tokens", int, "most tokens to generate"),
    ("min-tokens", int, "number of tokens before which nothing ends the output"),
    ("temperature", float, "0 is greedy; as all of these, by default the server's (see `info`)"),
    ("top-k", int, "number of likeliest tokens to pick among"),
    ("top-p", float, "smallest set of tokens whose probability reaches this"),
    ("min-p", float, "least probability relative to the likeliest token's"),
    ("repetition-penalty", float, "divides the logits of tokens seen; 1 is none"),
    ("presence-penalty", float, "subtracted from the logits of tokens seen in the output"),
    ("frequency-penalty", float, "the same, once per occurrence"),
    ("seed", int, "same seed, request and float32 model: same tokens"),
)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the command line asks for: whom to call, and how, and what to do there."""

    server: str
    connection: ConnectionOptions
    command: Callable[[Client], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    had_output = have_streams()
    asked = _parse(sys.argv[1:] if argv is None else argv)
    if not had_output:
        return _fail("standard output is closed", 1)
    write_any_character()
    try:
        with Client(asked.server, **asked.connection) as client:
            asked.command(client)
            sys.stdout.flush()
    except BrokenPipeError:
        discard_output()
        return 1
    except NiyamaError as error:
        line = _one_line(error, asked.server)
        return _fail(line, 2 if isinstance(error, InvalidRequest) else 1)
    except OSError as error:
        discard_output()
        return _fail(f"standard output: {error.strerror}", 1)
    except KeyboardInterrupt as error:  # by another signal where it has that one's number
        return 128 + int(getattr(error, "number", signal.SIGINT))
    return 0


def _fail(line: str, status: int) -> int:
    print(f"niyama: {printable(line)}", file=sys.stderr)
    return status


def _one_line(error: NiyamaError, server: str) -> str:
    message = " ".join(str(error).split())
    if error.retry_after is not None:
        message += f" (retry after {error.retry_after:g} s)"
    return f"{server}: {message}"


# Arguments


def _parse(argv: Sequence[str]) -> _Asked:
    """Reads the command line. A first word that names no command begins a prompt, and so `generate`
    is put before it.

    Each command's parser holds, as `bound`, a function that binds the command to its arguments.
    """
    common = argparse.ArgumentParser("niyama", add_help=False, allow_abbrev=False)
    common.add_argument(
        "--server",
        default=os.environ.get(SERVER) or DEFAULT_SERVER,
        metavar="HOST:PORT",
        help=f"default: ${SERVER}, or {DEFAULT_SERVER}",
    )
    common.add_argument("--tenant", metavar="NAME", help="on whose behalf to call")
    reached = common.add_argument_group("connection")
    try:
        flags.add_connection(reached)
    except argparse.ArgumentError as error:
        common.error(str(error))
    reached.add_argument(
        "--retries",
        action="store_true",
        help="try a call again that was refused for the moment or found no server",
    )
    found, rest = common.parse_known_args(argv)
    parser = argparse.ArgumentParser(
        prog="niyama",
        parents=[common],
        description="Generates text; the word `generate` may be left out.",
    )
    parser.add_argument("--version", action="version", version=f"niyama {version('niyama-client')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_generate(commands.add_parser("generate", help="continue a prompt, as it comes"))
    info = commands.add_parser("info", help="describe the model, the tiers and the limits")
    _add_json(info)
    info.set_defaults(bound=lambda typed: partial(_info, as_json=typed.json))
    _add_estimate(commands.add_parser("estimate", help="would a request sent now be on time?"))
    explain = commands.add_parser(
        "explain", help="tell the story of a request; of --tenant NAME's, or with a token anybody's"
    )
    explain.add_argument("request_id", metavar="ID", help="of several completions: ID/0, ID/1, ...")
    _add_json(explain)
    explain.set_defaults(
        bound=lambda typed: partial(
            _explain, request_id=typed.request_id, tenant=typed.tenant, as_json=typed.json
        )
    )
    count = commands.add_parser("count", help="count the tokens of a text")
    count.add_argument("prompt", help="- reads standard input")
    count.set_defaults(bound=lambda typed: partial(_count, prompt=typed.prompt))
    names = set(commands.choices or ())
    if rest and rest[0] not in names | {"-h", "--help", "--version"}:
        rest = ["generate", *rest]
    typed = parser.parse_args(rest, found)
    connection = flags.connection(typed)
    connection["tenant"] = typed.tenant or ""
    connection["retries"] = typed.retries
    return _Asked(typed.server, connection, typed.bound(typed))


def _add_generate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", help="what to continue; - reads standard input")
    parser.add_argument("--chat", action="store_true", help="send the prompt as a chat message")
    _add_qos(parser)
    for name, kind, text in _SAMPLING_FLAGS:
        parser.add_argument(f"--{name}", type=kind, help=text)
    parser.add_argument("--stop", action="append", help="text that ends the output (repeatable)")
    parser.add_argument("--ignore-eos", action="store_true", default=None)
    parser.add_argument("--request-id")
    parser.add_argument("--timeout", type=float, help="seconds after which the call is given up")
    parser.set_defaults(
        bound=lambda typed: partial(
            _generate,
            prompt=typed.prompt,
            is_chat=typed.chat,
            options=cast(GenerateOptions, _given(typed, GenerateOptions.__annotations__)),
        )
    )


def _add_estimate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt_tokens", type=int, help="tokens in the prompt")
    parser.add_argument("output_tokens", type=int, nargs="?", default=0)
    _add_json(parser)
    _add_qos(parser)
    parser.set_defaults(
        bound=lambda typed: partial(
            _estimate,
            prompt_tokens=typed.prompt_tokens,
            output_tokens=typed.output_tokens,
            as_json=typed.json,
            qos=cast(QosOptions, _given(typed, QosOptions.__annotations__)),
        )
    )


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON: an object per line")


def _add_qos(parser: argparse.ArgumentParser) -> None:
    qos = parser.add_argument_group("latency")
    qos.add_argument("--tier", help="a tier that the server knows (see `info`)")
    qos.add_argument("--ttft", type=float, help="seconds to the first token; needs --tbt")
    qos.add_argument("--tbt", type=float, help="seconds between tokens; needs --ttft")
    qos.add_argument("--ttlt", type=float, help="seconds to the last token")
    qos.add_argument("--best-effort", action="store_true", default=None)
    qos.add_argument(
        "--refuse-if-late",
        action="store_true",
        default=None,
        help="refuse it at once where it is expected to miss a target",
    )
    qos.add_argument("--importance", choices=("low", "normal", "high"))
    qos.add_argument("--application", help="who asks: selects a preset")


def _given(typed: argparse.Namespace, names: Container[str]) -> dict[str, object]:
    """Returns those of the named arguments that were typed."""
    return {
        name: value for name, value in vars(typed).items() if name in names and value is not None
    }


# Commands


def _text(prompt: str) -> str:
    """Returns a prompt as it was typed, or the standard input for "-". Raises InvalidRequest."""
    if prompt != "-":
        return prompt
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        reason = f"not {error.encoding} at byte {error.start}"
    except OSError as error:
        reason = error.strerror or type(error).__name__
    raise InvalidRequest(f"standard input: {reason}", "input")


def _generate(client: Client, prompt: str, is_chat: bool, options: GenerateOptions) -> None:
    text = _text(prompt)
    sent = [{"role": "user", "content": text}] if is_chat else text
    stream = client.generate(sent, **options)
    at_line_start = True
    try:
        for event in stream.events():
            if isinstance(event, Tokens):
                print(event.text, end="", flush=True)
                at_line_start = event.text.endswith("\n") if event.text else at_line_start
            elif isinstance(event, Accepted):
                for line in words.accepted(event):
                    print(line, file=sys.stderr)
            elif isinstance(event, Relegated):
                print(words.relegation(event), file=sys.stderr)
    finally:
        if not at_line_start:
            print(flush=True)
    for finished in stream.completions.values():
        print(words.summary(stream.request_id or "", finished), file=sys.stderr)


def _info(client: Client, as_json: bool) -> None:
    info = client.server_info()
    if as_json:
        _print_json(info)
        return
    model, limits = info.model, info.limits
    print(f"server    {info.version}, policy {info.policy}")
    print(f"model     {model.name} ({model.architecture}), {model.parameters:,} parameters")
    print(f"          {model.dtype} on {model.device}, vocabulary {model.vocabulary_size:,}")
    print(f"context   {model.context_length:,} tokens")
    print(
        f"limits    {limits.max_requests:,} requests, {limits.max_batch_size:,} per iteration, "
        f"{limits.kv_tokens:,} tokens in memory"
    )
    print(f"sampling  {words.sampling(info.sampling)}, where a request does not say")
    for tier in info.tiers:
        default = "  (default)" if tier.name == info.default_tier else ""
        importance = f"importance {tier.importance.value}"
        gap = "" if tier.max_gap is None else f", gaps of {tier.max_gap:g} TBT at most"
        print(f"tier      {tier.name}: {words.targets(tier.targets)}{gap}, {importance}{default}")
        if tier.note:
            print(f"          ! {tier.note}")


def _estimate(
    client: Client, prompt_tokens: int, output_tokens: int, as_json: bool, qos: QosOptions
) -> None:
    estimate = client.estimate(prompt_tokens, output_tokens, **qos)
    if as_json:
        _print_json(estimate)
        return
    forecast = estimate.forecast
    admission = estimate.admission
    if not admission.admitted:
        print(f"REFUSED   {admission.detail}; retry after {words.ms(admission.retry_after)}")
    print("on time" if forecast.on_time else "LATE")
    print(f"predicted {words.forecast(forecast)}")
    print(f"targets   {words.resolved(estimate.targets)}")


def _explain(client: Client, request_id: str, tenant: str | None, as_json: bool) -> None:
    for number, story in enumerate(_stories(client, request_id, tenant)):
        if as_json:
            _print_json(story)
        else:
            print("\n" * (number > 0) + words.told(story))


def _stories(client: Client, request_id: str, tenant: str | None) -> Iterator[Explanation]:
    """Yields the story of a request, or those of all its completions, where it has several."""
    first = client.explain(request_id, tenant)
    yield first
    if first.request_id != f"{request_id}/0":
        return
    for index in range(1, MOST_COMPLETIONS):
        try:
            yield client.explain(f"{request_id}/{index}", tenant)
        except NotFound:
            return


def _print_json(value: ServerInfo | Estimate | Explanation) -> None:
    """Prints a value of the client on a line of its own. What is not finite is null: JSON has no
    number for it.
    """
    print(json.dumps(_finite(asdict(value)), default=lambda named: named.value))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _count(client: Client, prompt: str) -> None:
    print(client.count_tokens(_text(prompt)).count)


if __name__ == "__main__":
    sys.exit(main())
