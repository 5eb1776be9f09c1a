"""Defects of ours: the trace goes into the log, and the caller is told where to find it there."""

from __future__ import annotations

import secrets
import traceback

import structlog

from server import errors
from server.errors import CallError

log = structlog.get_logger()


def noted(trace: str | None = None, **where: str) -> CallError:
    """Logs a defect of ours, with its traceback (None: of the exception that is being handled) and
    where it was made; returns the error for the call, which has nothing of it but its id.
    """
    error_id = secrets.token_hex(8)
    log.error("defect", error_id=error_id, **where, trace=trace or traceback.format_exc())
    return errors.internal(error_id)
