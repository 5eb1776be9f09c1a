"""What may go wrong with an engine, as a front end is told of it."""

from __future__ import annotations

from engine.messages import Failure


class EngineError(Exception):
    """This is the root of what callers should catch.

    EngineError
     |- EngineLost       the engine is starting, was lost, or is stopped: try again
     |- EngineStartError it cannot start: the line says why
     |- DuplicateRequest a request of that id is in flight
     |- Unanswered       the engine has no answer; `failure` says why
    """


class EngineLost(EngineError):
    pass


class EngineStartError(EngineError):
    pass


class DuplicateRequest(EngineError):
    pass


class Unanswered(EngineError):
    def __init__(self, message: str, failure: Failure) -> None:
        super().__init__(message)
        self.failure = failure
