"""The pages of the metrics port, as a WSGI application: which there are, and who may read what.

    /                the status page                /metrics   for Prometheus
    /status.json     what that page shows           /healthz   200 while the process is alive
    /explain         the story of one request       /readyz    200 while calls are served
    /inferred.toml   what calls that state no targets seem to need

Threads run it. What they need of the event loop is asked with a bounded wait, and answered 503
where that is over. What befell single requests is for the operator: whoever shows the token, or
where no token is set somebody on this machine.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import parse_qs
from wsgiref.types import StartResponse, WSGIEnvironment

import grpc
from google.protobuf.json_format import MessageToDict
from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import choose_encoder

from niyama.v1 import inference_pb2 as pb
from server import errors
from server.convert import inbound
from server.errors import CallError
from server.identity.identities import Identities
from server.listening.addresses import is_loopback
from server.listening.exposure import FORWARDED
from server.status.findings import Phase
from server.status.loop import LoopSilent
from server.status.page import PAGE, POLICY
from server.status.source import Source
from server.violations import InvalidRequest

METHODS = ("GET", "HEAD")
METRICS = "/metrics"
MOST_ASKING = 4  # for Explain at once, so that threads are left for who asks how the server does
_ALWAYS = (
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
    ("Content-Security-Policy", POLICY),
)
_FORWARDED = tuple(f"HTTP_{name.upper().replace('-', '_')}" for name in FORWARDED)
_STATUSES = {
    grpc.StatusCode.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    grpc.StatusCode.PERMISSION_DENIED: HTTPStatus.FORBIDDEN,
    grpc.StatusCode.NOT_FOUND: HTTPStatus.NOT_FOUND,
}


class Answer(NamedTuple):
    """An answer, but for the headers that all have."""

    status: HTTPStatus
    body: bytes
    kind: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()


class Site:
    """The application."""

    def __init__(self, registry: CollectorRegistry, source: Source, identities: Identities) -> None:
        self._source = source
        self._identities = identities
        self._metrics = make_wsgi_app(registry)
        self._asking = threading.BoundedSemaphore(MOST_ASKING)
        self._pages: dict[str, Callable[[WSGIEnvironment], Answer]] = {
            "/": self._page,
            "/status.json": self._status,
            "/explain": self._explain,
            "/inferred.toml": self._inferred,
            "/healthz": self._healthz,
            "/readyz": self._readyz,
        }

    def __call__(self, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        path, method = environ.get("PATH_INFO", ""), environ["REQUEST_METHOD"]
        if path == METRICS and method == "GET":
            told: Iterable[bytes] = self._metrics(_encodable(environ), start)
            return told
        answer = self._answer(path, method, environ)
        headers = [
            ("Content-Type", answer.kind),
            ("Content-Length", str(len(answer.body))),
            *_ALWAYS,
            *answer.headers,
        ]
        start(f"{answer.status.value} {answer.status.phrase}", headers)
        return [] if method == "HEAD" else [answer.body]

    def _answer(self, path: str, method: str, environ: WSGIEnvironment) -> Answer:
        if path != METRICS and path not in self._pages:
            there_are = ", ".join((*self._pages, METRICS))
            return _text(HTTPStatus.NOT_FOUND, f"nothing here; there are {there_are}")
        if method not in METHODS:
            allowed = (("Allow", ", ".join(METHODS)),)
            return _text(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD", allowed)
        if path == METRICS:
            return Answer(HTTPStatus.OK, b"")
        try:
            return self._pages[path](environ)
        except LoopSilent as error:
            return _text(HTTPStatus.SERVICE_UNAVAILABLE, f"the server does not answer: {error}")

    def _page(self, environ: WSGIEnvironment) -> Answer:
        return Answer(HTTPStatus.OK, PAGE, "text/html; charset=utf-8")

    def _healthz(self, environ: WSGIEnvironment) -> Answer:
        self._source.parts()
        return _text(HTTPStatus.OK, "alive")

    def _readyz(self, environ: WSGIEnvironment) -> Answer:
        parts = self._source.parts()
        if parts.is_ready:
            return _text(HTTPStatus.OK, "ready")
        is_engine_s = parts.phase is not Phase.SERVING
        why = parts.phase.value if is_engine_s else "no front end serves"
        return _text(HTTPStatus.SERVICE_UNAVAILABLE, f"not ready: {why}")

    def _inferred(self, environ: WSGIEnvironment) -> Answer:
        try:
            self._admit(environ)
        except CallError as error:
            return _failed(_STATUSES[error.code], error.message)
        return Answer(HTTPStatus.OK, self._source.inferred().encode(), "application/toml")

    def _status(self, environ: WSGIEnvironment) -> Answer:
        document = self._source.document()
        try:
            self._admit(environ)
        except CallError as error:
            access = {"may_ask": False, "why_not": error.message}
        else:
            document |= self._source.decisions()
            access = {"may_ask": True, "why_not": ""}
        has_token = self._identities.has_operator
        document["explain"] = {"needs_token": has_token, **access}
        return _json(HTTPStatus.OK, document)

    def _explain(self, environ: WSGIEnvironment) -> Answer:
        try:
            self._admit(environ)
            request_id, tenant = _asked(environ.get("QUERY_STRING", ""))
            if not self._asking.acquire(blocking=False):
                return _failed(HTTPStatus.SERVICE_UNAVAILABLE, "too many ask at once: ask again")
            try:
                told = self._source.explain(request_id, tenant)
            finally:
                self._asking.release()
        except InvalidRequest as error:
            return _failed(HTTPStatus.BAD_REQUEST, str(error))
        except CallError as error:
            status = _STATUSES.get(error.code, HTTPStatus.SERVICE_UNAVAILABLE)
            return _failed(status, error.message)
        except LoopSilent as error:
            return _failed(HTTPStatus.SERVICE_UNAVAILABLE, f"the server does not answer: {error}")
        return _json(HTTPStatus.OK, MessageToDict(told, preserving_proto_field_name=True))

    def _admit(self, environ: WSGIEnvironment) -> None:
        """Raises CallError, UNAUTHENTICATED or PERMISSION_DENIED, for who may not ask about single
        requests.
        """
        if not self._identities.has_operator:
            if not _is_local(environ):
                raise errors.not_local()
            return
        shown = environ.get("HTTP_AUTHORIZATION")
        if not self._identities.is_operator([] if shown is None else [shown]):
            raise errors.wrong_token()


def _encodable(environ: WSGIEnvironment) -> WSGIEnvironment:
    """Returns what asks for metrics, without an Accept header that prometheus_client trips over, as
    over versions that are no numbers: who sends one gets the plain format.
    """
    try:
        choose_encoder(environ.get("HTTP_ACCEPT", ""))
    except (TypeError, ValueError):
        return {**environ, "HTTP_ACCEPT": ""}
    return environ


def _is_local(environ: WSGIEnvironment) -> bool:
    """Returns whether somebody on this machine asks, and asks for this machine by a name of its
    own: another name may be a foreign page's, which a browser here has been led to believe is
    this server.
    """
    if any(header in environ for header in _FORWARDED):
        return False
    host = environ.get("HTTP_HOST", "localhost")
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    is_own_name = name.lower() == "localhost" or is_loopback(name)
    return is_own_name and is_loopback(environ.get("REMOTE_ADDR", ""))


def _asked(query: str) -> tuple[str, str | None]:
    """Returns the request id that a query names, and the tenant, None where it names none. Raises
    InvalidRequest.
    """
    try:
        fields = parse_qs(query, keep_blank_values=True, max_num_fields=8)
    except ValueError:
        fields = {}
    request = pb.ExplainRequest(request_id=fields.get("request_id", [""])[0])
    request_id = inbound.read_request_id(request)
    if "tenant" not in fields:
        return request_id, None
    return request_id, inbound.read_tenant([(inbound.TENANT_KEY, fields["tenant"][0])])


def _text(status: HTTPStatus, line: str, headers: tuple[tuple[str, str], ...] = ()) -> Answer:
    return Answer(status, f"{line}\n".encode(), headers=headers)


def _json(status: HTTPStatus, value: dict[str, Any]) -> Answer:
    body = json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
    return Answer(status, body + b"\n", "application/json")


def _failed(status: HTTPStatus, why: str) -> Answer:
    answer = _json(status, {"error": why})
    if status is HTTPStatus.UNAUTHORIZED:
        return answer._replace(headers=(("WWW-Authenticate", "Bearer"),))
    return answer
