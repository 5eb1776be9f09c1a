"""The command line: its flags, and the workload that they ask for."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from client import address
from client import arguments as values
from client.client import DEFAULT_SERVER
from client.terminal import printable
from client.values import Importance
from loadgen import simulation_flags
from loadgen.scoring import gate
from loadgen.workload import mix, toml_file
from loadgen.workload.arrivals import Process, parse_rate
from loadgen.workload.lengths import Distribution, Lognormal, parse_distribution
from loadgen.workload.plan import SharedPrefix
from loadgen.workload.spec import Spec, TierSpec, by_importance
from loadgen.workload.units import parse_duration, parse_shares

V = TypeVar("V")


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong; the flags are too many to be listed each time."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {printable(message)} (--help lists the flags)\n")


def parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="niyama-loadgen",
        description="Sends an open-loop load of several tiers and reports who was on time.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_EPILOG,
    )
    _add_target(parser.add_argument_group("target"))
    simulation_flags.add(parser.add_argument_group("simulation"), _typed)
    _add_load(parser.add_argument_group("load"))
    _add_requests(
        parser.add_argument_group("requests", "LENGTH: 100 fixed, 80/200 lognormal by p50/p90")
    )
    _add_modes(parser.add_argument_group("modes (one run where none is given)"))
    _add_measuring(parser.add_argument_group("measuring and reporting"))
    return parser


_EPILOG = """\
rates       40; 2..5/15m (square wave); step:2..5/15m; ramp:2..5; sine:1..9/24h
durations   500ms, 30 or 30s, 15m, 4h
exit status 0; 1 the target was not reached or was lost; 2 bad arguments; 3 the gate is shut;
            4 the run is invalid (only with a gate or a search); 130 interrupted,
            143 by SIGTERM, 129 by SIGHUP
"""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Exits with a usage line where the arguments make no sense."""
    made = parser()
    unset = argparse.Namespace(**dict.fromkeys(simulation_flags.NAMES))
    arguments = made.parse_args(argv, unset)
    if problem := simulation_flags.misplaced(arguments):
        made.error(problem)
    if arguments.simulate is not None:
        if arguments.compare and arguments.policy is not None:
            made.error("argument --policy: not allowed with argument --compare, which names them")
        for name in simulation_flags.NAMES:
            if getattr(arguments, name) is None:
                setattr(arguments, name, made.get_default(name))
    if arguments.compare and arguments.slo_gate is not None:
        made.error("argument --compare: not allowed with argument --slo-gate")
    if problem := _contradiction(arguments):
        made.error(problem)
    for name in ("json", "html", "csv"):
        path: Path | None = getattr(arguments, name)
        if path is not None and not _can_be_written(path):
            made.error(f"argument --{name}: {path} cannot be written")
    return arguments


def _contradiction(arguments: argparse.Namespace) -> str:
    """What to say of a flag that another one leaves without an effect."""
    compared = arguments.compare or []
    if arguments.silo is not None and "silo" not in compared:
        return "argument --silo: only with silo in --compare"
    if arguments.server_flags and (arguments.simulate is not None or not compared):
        return "argument --server-flags: only of servers that --compare starts"
    if arguments.trace is not None and any(
        not tier for tier, _ in (*arguments.prompt_tokens, *arguments.output_tokens)
    ):
        return "argument --trace: not allowed with lengths for all tiers, which its rows give"
    if arguments.replay is not None and (arguments.arrivals, arguments.cv) != (None, None):
        return "argument --replay: not allowed with --arrivals or --cv, its rows say when"
    if arguments.cv is not None and arguments.arrivals not in (None, Process.GAMMA):
        return "argument --cv: only of gamma arrivals"
    return ""


def as_typed(argv: Sequence[str] | None, arguments: argparse.Namespace) -> dict[str, Any]:
    """The flags that were given or have a default: numbers (durations in seconds), and the text
    typed where the value is no plain one."""
    made = parser()
    for action in made._actions:
        action.type = action.choices = None
    texts = vars(made.parse_args(argv))
    given = {name: value for name, value in vars(arguments).items() if value not in (None, [])}
    return {
        name: value if _is_plain(value) else texts[name] for name, value in sorted(given.items())
    }


def _is_plain(value: object) -> bool:
    """JSON has no infinity."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, str | int)


def _can_be_written(path: Path) -> bool:
    """Asked before the run, not after it."""
    place = path if path.exists() else path.parent
    return not path.is_dir() and os.access(place, os.W_OK)


def _typed(parse: Callable[[str], V]) -> Callable[[str], V]:
    """An argparse type that keeps the parser's own message."""

    def convert(text: str) -> V:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def _add_target(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--target",
        type=_typed(address.check),
        metavar="HOST:PORT",
        default=DEFAULT_SERVER,
        help="default %(default)s",
    )
    group.add_argument("--channels", type=int, default=4, help="connections (default %(default)s)")
    group.add_argument(
        "--drain",
        type=_typed(parse_duration),
        metavar="DURATION",
        help="longest wait for the last answers (default 60s; simulated: none)",
    )


def _add_load(group: argparse._ArgumentGroup) -> None:
    duration = _typed(parse_duration)
    group.add_argument("--workload", type=Path, metavar="FILE", help="TOML file; flags override it")
    group.add_argument(
        "--rps", type=_typed(parse_rate), metavar="RATE", help="requests/s (default 10)"
    )
    group.add_argument("--duration", type=duration, help="default 30s, or the replayed trace")
    group.add_argument(
        "--seed",
        type=int,
        help="same seed, same instants, lengths and kinds of requests (default 0)",
    )
    group.add_argument(
        "--mix",
        type=_typed(parse_shares),
        metavar="TIER:SHARE,...",
        help="the other tiers get equal parts of the rest (default: all equal)",
    )
    group.add_argument(
        "--arrivals",
        type=Process,
        choices=list(Process),
        metavar="poisson|gamma|constant",
        help="default poisson, or gamma with --cv",
    )
    group.add_argument("--cv", type=float, help="of gamma arrivals: coefficient of variation")
    group.add_argument(
        "--replay", type=Path, metavar="TRACE", help="arrival times and lengths of a trace's rows"
    )


def _add_requests(group: argparse._ArgumentGroup) -> None:
    shares = _typed(parse_shares)
    lengths = {
        "prompt": (mix.INTERACTIVE.prompt, mix.BACKGROUND.prompt),
        "output": (mix.INTERACTIVE.output, mix.BACKGROUND.output),
    }
    for name, (interactive, others) in lengths.items():
        group.add_argument(
            f"--{name}-tokens",
            type=_typed(_tier_length),
            action="append",
            default=[],
            metavar="[TIER:]LENGTH",
            help=f"default {_length(interactive)} with a TTFT target, else {_length(others)}",
        )
    group.add_argument("--trace", type=Path, help="lengths drawn from a trace's rows")
    group.add_argument(
        "--importance",
        type=_typed(_importance),
        metavar="low:0.2,normal:0.8",
        help="default: the tier's",
    )
    group.add_argument("--tenants", type=shares, metavar="NAME:SHARE,...", help="default: one")
    group.add_argument("--applications", type=shares, metavar="NAME:SHARE,...", help="default: one")
    group.add_argument(
        "--shared-prefix",
        type=_typed(_prefix),
        metavar="TOKENS[:SHARE[:COUNT]]",
        help="that share of the prompts starts with one of COUNT common prefixes",
    )
    group.add_argument(
        "--cancel-rate", type=float, help="share of clients that leave early (default 0)"
    )
    group.add_argument(
        "--timeout", type=_typed(parse_duration), help="deadline of each call (default: none)"
    )


def _length(length: Distribution) -> str:
    """As it is typed."""
    return f"{length.p50:g}/{length.p90:g}" if isinstance(length, Lognormal) else str(length)


def _add_modes(group: argparse._ArgumentGroup) -> None:
    modes = group.add_mutually_exclusive_group()
    modes.add_argument(
        "--sweep", type=_typed(_rates), metavar="RATE,RATE,...", help="a run at each rate"
    )
    modes.add_argument(
        "--find-capacity", action="store_true", help="the largest rate that is served"
    )
    modes.add_argument(
        "--slo-gate",
        type=_typed(gate.parse_gate),
        nargs="?",
        const="0.99",
        metavar="SHARE|TIER:SHARE,...",
        help="exit status 3 unless that share is on time (default 0.99 of every tier)",
    )
    group.add_argument(
        "--compare",
        type=_typed(_names),
        metavar="NAME,...",
        help="the same requests to each: a policy (a server is started), or NAME=HOST:PORT; "
        "one run each, a sweep or a search",
    )
    group.add_argument(
        "--max-misses",
        type=float,
        default=0.01,
        help="capacity: share allowed (default %(default)s)",
    )
    group.add_argument(
        "--precision", type=float, default=0.05, help="capacity: relative (default %(default)s)"
    )
    group.add_argument(
        "--repeats", type=int, default=3, help="capacity: runs per rate (default %(default)s)"
    )
    group.add_argument(
        "--server-flags",
        default="",
        metavar="FLAGS",
        help="compare: for the servers started (default: none)",
    )


def _rates(text: str) -> list[float]:
    try:
        rates = [float(part) for part in text.split(",")]
    except ValueError:
        rates = []
    if not rates or not all(0 < rate < math.inf for rate in rates):
        raise ValueError(f"{text!r} is not a list of rates such as 10,20,40")
    return rates


def _names(text: str) -> list[str]:
    contenders = [part.strip() for part in text.split(",")]
    names = [contender.partition("=")[0] for contender in contenders]
    if not all(names) or len(set(names)) < len(names):
        raise ValueError(f"{text!r} is not a list of different names")
    for contender in contenders:
        name, is_running, server = contender.partition("=")
        values.text(name, "a contender's name")
        if is_running:
            address.check(server)
    return contenders


def _add_measuring(group: argparse._ArgumentGroup) -> None:
    duration = _typed(parse_duration)
    group.add_argument(
        "--warmup", type=duration, default=0.0, help="not measured at the start (default 0)"
    )
    group.add_argument(
        "--cooldown", type=duration, default=0.0, help="not measured at the end (default 0)"
    )
    group.add_argument(
        "--max-lag",
        type=duration,
        default=0.05,
        help="schedule lag p99 beyond which a run is invalid (default 50ms)",
    )
    group.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    group.add_argument("--html", type=Path, metavar="FILE", help="write a page of charts")
    group.add_argument("--csv", type=Path, metavar="FILE", help="write a row per request")


def to_spec(arguments: argparse.Namespace) -> Spec:
    """What the flags ask for, over the workload file where one is given. Raises ValueError."""
    everyone = TierSpec(
        prompt=dict(arguments.prompt_tokens).get(""),
        output=dict(arguments.output_tokens).get(""),
        trace=arguments.trace,
        importance=arguments.importance,
        timeout_s=arguments.timeout,
        cancel_rate=arguments.cancel_rate,
        prefix=arguments.shared_prefix,
    )
    spec = Spec(
        rate=arguments.rps,
        duration_s=arguments.duration,
        seed=arguments.seed,
        process=arguments.arrivals,
        cv=arguments.cv,
        replay=arguments.replay,
        mix=arguments.mix,
        tenants=arguments.tenants,
        applications=arguments.applications,
        everyone=everyone,
        tiers=_tier_lengths(arguments.prompt_tokens, arguments.output_tokens),
    )
    if arguments.workload is None:
        return spec
    return spec.over(toml_file.load(arguments.workload))


TierLength = tuple[str, Distribution]


def _tier_lengths(
    prompts: Sequence[TierLength], outputs: Sequence[TierLength]
) -> dict[str, TierSpec]:
    prompt, output = dict(prompts), dict(outputs)
    names = [name for name in {**prompt, **output} if name]
    return {name: TierSpec(prompt=prompt.get(name), output=output.get(name)) for name in names}


def _tier_length(text: str) -> TierLength:
    tier, _, length = text.rpartition(":")
    return tier, parse_distribution(length)


def _importance(text: str) -> dict[Importance, float]:
    return by_importance(parse_shares(text))


def _prefix(text: str) -> SharedPrefix:
    parts = text.split(":")
    try:
        length = int(parts[0])
        share = float(parts[1]) if len(parts) > 1 else 1.0
        count = int(parts[2]) if len(parts) > 2 else 1
    except ValueError:
        raise ValueError(f"{text!r} is not TOKENS[:SHARE[:COUNT]]") from None
    return SharedPrefix(length, share, count)
