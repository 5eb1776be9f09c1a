"""`make demo`: the embedded model tells a story, then chat waits behind a batch, or does not.

Starts a server, which streams a completion and is measured; sends the same load to it, with policy
fcfs, and to another with niyama; has that one explain a request which it relegated; and writes an
HTML report of both runs into `demo-report/`, beside the load. Standard error tells what is being
done, standard output what came of it, all of which is of these runs.

Exit status 0; 1 where a server could not be reached or something not be written; 130 for Ctrl-C,
143 and 129 for SIGTERM and SIGHUP. Then nothing is left behind.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from loadgen import interrupts
from loadgen.demo import load, words
from loadgen.demo.load import Load, Size
from loadgen.reports.html import document
from loadgen.reports.html.page import Asked, page, versions
from loadgen.scoring.criterion import MEASURED
from loadgen.scoring.modes import Measurement, measure
from loadgen.scoring.score import is_on_time
from loadgen.scoring.summary import Measuring
from loadgen.steps import step
from loadgen.targets import local_server
from loadgen.targets.live import LiveTarget
from loadgen.targets.record import Record
from loadgen.targets.target import Progress, Unreachable, Watch
from loadgen.workload.spec import Spec, build
from niyama.client.client import Client
from niyama.client.errors import NiyamaError
from niyama.client.terminal import discard_output, have_streams, write_any_character

PROMPT = "Once upon a time, there was a little"
SAMPLING_SEED, TEMPERATURE, MAX_TOKENS = 1, 0.7, 120
BASELINE, OURS = "fcfs", "niyama"
FOLDER = Path("demo-report")
MAX_LAG_S = 0.25  # on 2 cores the generator shares them with the server
WARM_UP_S = 2.0  # in which the second server is sent a burst first, as the first was measured
DRAIN_S = 300.0  # for the last answers, on a machine that has become slow


def main(
    argv: Sequence[str] | None = None,
    size: Size | None = None,
    folder: Path = FOLDER,
    server: str = local_server.MODULE,
) -> int:
    """Runs the demo and returns the exit status.

    `argv` are flags of `python -m server`, or of another module `server` that is started like it;
    what is written goes into `folder`.
    """
    have_streams()
    flags = sys.argv[1:] if argv is None else list(argv)
    write_any_character()
    if not {"-h", "--help"}.isdisjoint(flags):
        print(f"python -m loadgen.demo [FLAG of python -m {server}]...\n\n{__doc__}", end="")
        return 0
    try:
        with (
            interrupts.handled(interrupts.interrupt),
            tempfile.TemporaryDirectory(prefix="niyama-demo-") as work,
        ):
            _Demo(flags, size or Size(), server, Path(work), folder).run()
            return 0
    except (Unreachable, NiyamaError) as error:
        return _fail(" ".join(str(error).split()))
    except OSError as error:
        if error.filename is None:  # of no file, hence of standard output
            discard_output()
            return _fail(f"standard output: {error.strerror}")
        return _fail(str(error))
    except KeyboardInterrupt as error:
        return interrupts.exit_status(interrupts.number_of(error))


def _fail(message: str) -> int:
    with contextlib.suppress(OSError):  # nobody is there to be told
        print(f"demo: {message}", file=sys.stderr)
    return 1


@dataclass(slots=True)
class _Demo:
    """One demo. It works in the folder `work`, and what it leaves is copied to `folder`."""

    flags: Sequence[str]
    size: Size
    server: str
    work: Path
    folder: Path

    def run(self) -> None:
        """Does all of it. Raises Unreachable, NiyamaError, OSError, or Interrupted."""
        self._try_folder()
        with self._serving(BASELINE) as target:
            self._stream(target.server)
            tokens_per_s = self._measure(target)
            spec = self._plan(target, tokens_per_s).write(self.work)
            before = self._send(target, spec, BASELINE)
        with self._serving(OURS) as target:
            with step("warming it up"):
                load.burst(target, tokens_per_s * WARM_UP_S)
            after = self._send(target, spec, OURS)
            self._compare(before, after)
            self._explain(target.server, after)
        self._write_report([before, after])

    def _try_folder(self) -> None:
        """Raises OSError where nothing can be written into `folder`, which is left as it is: else
        that would be found out after minutes.
        """
        is_new = not self.folder.exists()
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.folder):
            pass
        if is_new:
            self.folder.rmdir()

    @property
    def _server_flags(self) -> list[str]:
        """Returns what both servers are started with: room for all that is sent to wait."""
        return ["--max-requests", str(2 * load.MOST), *self.flags]

    @contextlib.contextmanager
    def _serving(self, policy: str) -> Iterator[LiveTarget]:
        """Serves with a policy while the block lasts."""
        # The policy last: then it holds, whatever the flags say.
        flags, log = [*self._server_flags, "--policy", policy], self.work / f"{policy}.log"
        with contextlib.ExitStack() as stack:
            with step(f"starting a server, policy {policy}", lambda: local_server.doing(log)):
                serving = local_server.serving(flags, self.server, log)
                address = stack.enter_context(serving)
            yield LiveTarget(address, drain_s=DRAIN_S)

    def _stream(self, address: str) -> None:
        """Shows a completion as it comes."""
        print(f"\n> {PROMPT}\n", flush=True)
        text = words.Wrapped()
        with Client(address) as client:
            stream = client.generate(
                PROMPT,
                tier=load.CHAT,
                max_tokens=MAX_TOKENS,
                temperature=TEMPERATURE,
                seed=SAMPLING_SEED,
            )
            for tokens in stream:
                text.add(tokens.text)
        text.end()
        print(f"\n  {words.timings(stream)}\n", flush=True)

    def _measure(self, target: LiveTarget) -> float:
        """Returns how many tokens of the mix the engine serves in a second."""
        with step("measuring what this engine serves"):
            return load.measured(target, self.size.probe_s)

    def _plan(self, target: LiveTarget, tokens_per_s: float) -> Load:
        """Returns the load that suits such an engine, and says what it is."""
        sent = load.drawn(tokens_per_s, self.size)
        targets = {tier.name: tier.targets for tier in target.info().tiers}
        print(words.about(sent, tokens_per_s, targets), end="\n\n", flush=True)
        return sent

    def _send(self, target: LiveTarget, spec: Spec, policy: str) -> Measurement:
        """Sends the load to a policy, and returns what came of every request. Raises Unreachable,
        or Interrupted, where it did not come to its end.
        """
        info = replace(target.info(), name="this machine")
        workload = build(spec, info)
        progress = ""

        def tell(now: Progress) -> None:
            nonlocal progress
            progress = f"{now.num_sent} sent, {now.num_finished} finished"

        def showing(duration_s: float, name: str) -> contextlib.nullcontext[Watch]:
            return contextlib.nullcontext(tell)

        with step(f"sending under {policy}", lambda: progress):
            measuring = Measuring(max_lag_s=MAX_LAG_S)
            run = measure(target, info, workload, measuring, showing, policy, policy)
            if run.interrupted_by:
                raise interrupts.Interrupted(run.interrupted_by)
            if run.summary.problem:
                raise Unreachable(run.summary.problem)
        return run

    def _compare(self, before: Measurement, after: Measurement) -> None:
        print(words.comparison([before, after]), end="\n\n")
        for run in (before, after):
            print(words.late(run))
            if run.summary.invalid:
                print(words.paragraph(f"Not valid, {run.name}: {run.summary.invalid}"))
        print(f"\n{words.by_tier(after)}", flush=True)

    def _explain(self, address: str, run: Measurement) -> None:
        """Has the server tell of a request that was relegated, or else of the slowest one."""
        if (found := chosen(run.records)) is not None:
            with Client(address) as client:
                told = client.explain(found.request_id)
            print(f"\n{words.asked(found)}\n\n{words.story(told)}", flush=True)

    def _write_report(self, runs: Sequence[Measurement]) -> None:
        """Writes the HTML report and the load, and says where."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in ("load.csv", "load.toml"):
            shutil.copy(self.work / name, self.folder / name)
        again = ["python", "-m", "loadgen", "--workload", str(self.folder / "load.toml")]
        again += ["--compare", f"{BASELINE},{OURS}", "--max-lag", f"{MAX_LAG_S * 1e3:g}ms"]
        again += ["--server-flags", shlex.join(self._server_flags)]
        asked = Asked(
            "compare",
            shlex.join(again),
            load.SEED,
            MEASURED.max_misses,
            versions(runs),
            datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        )
        report = self.folder / "report.html"
        document.write(page(asked, runs), report)
        print(f"\n{words.written(report, again)}", flush=True)


def chosen(records: Sequence[Record]) -> Record | None:
    """Returns the request whose story is told: of those that were relegated and late the one that
    took longest, or else of all; None where the server knows of none.
    """
    known = [record for record in records if record.request_id and record.ended_at is not None]
    late = [record for record in known if record.relegated and not is_on_time(record)]
    relegated = [record for record in known if record.relegated]
    return max(late or relegated or known, key=_took_s, default=None)


def _took_s(record: Record) -> float:
    return (record.ended_at or 0.0) - record.request.at
