"""Counters of the front end, in Prometheus form. One instance per server, its own registry."""

from __future__ import annotations

from threading import Thread
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    def __init__(self) -> None:
        self._server: WSGIServer | None = None
        self._thread: Thread | None = None
        self.registry = CollectorRegistry()
        self.calls = Counter(
            "niyama_calls", "Generate calls ended, by outcome", ["outcome"], registry=self.registry
        )
        self.completions = Counter(
            "niyama_completions",
            "Completions finished, by tier and whether every target was met",
            ["tier", "on_time"],
            registry=self.registry,
        )
        self.output_tokens = Counter(
            "niyama_output_tokens", "Tokens handed to clients", registry=self.registry
        )
        self.prompt_tokens = Counter(
            "niyama_prompt_tokens", "Prompt tokens of finished completions", registry=self.registry
        )
        self.engine_losses = Counter(
            "niyama_engine_losses", "Times the engine was lost", registry=self.registry
        )
        self.in_flight = Gauge(
            "niyama_calls_in_flight", "Generate calls being served", registry=self.registry
        )
        self.ttft = Histogram(
            "niyama_ttft_seconds",
            "Arrival to first token",
            ["tier"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.ttlt = Histogram(
            "niyama_ttlt_seconds",
            "Arrival to last token",
            ["tier"],
            buckets=_SECONDS,
            registry=self.registry,
        )

    def serve(self, host: str, port: int) -> int:
        """Serves /metrics from a thread of its own, until `stop`; returns the port, for port 0.

        Raises OSError when the port is taken.
        """
        self._server, self._thread = start_http_server(port, addr=host, registry=self.registry)
        return self._server.server_port

    def stop(self) -> None:
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
            self._server = self._thread = None
