"""Logs, as text for people or as JSON for programs. No secret gets into them: routes, not paths, and messages are redacted."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from skillhub import redaction
from skillhub_registry.observation import Observation

logger = logging.getLogger("skillhub_registry.requests")


class _JsonFormatter(logging.Formatter):
    """A JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        document = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redaction.presentable(record.getMessage()),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            document["traceback"] = redaction.presentable(self.formatException(record.exc_info))
        return json.dumps(document)


class _TextFormatter(logging.Formatter):
    """A line for people, and the traceback of a failure below it."""

    def format(self, record: logging.LogRecord) -> str:
        return redaction.presentable(super().format(record))


def configure_logs(log_format: str | None) -> None:
    """Write warnings to stderr; with a format, ``json`` or ``text``, every request as well."""
    handler = logging.StreamHandler(sys.stderr)
    as_text = _TextFormatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(_JsonFormatter() if log_format == "json" else as_text)
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logger.setLevel(logging.WARNING if log_format is None else logging.INFO)


def log_request(seen: Observation) -> None:
    """Write a line on a request that was answered."""
    if not logger.isEnabledFor(logging.INFO):
        return
    milliseconds = round(seen.seconds * 1000, 1)
    fields = {
        "request_id": seen.request_id,
        "address": seen.address,
        "account": seen.account,
        "method": seen.method,
        "route": seen.route,
        "repository": seen.repository,
        "status": seen.status,
        "milliseconds": milliseconds,
        "bytes_in": seen.bytes_in,
        "bytes_out": seen.bytes_out,
    }
    who = f"{seen.account or '-'} {seen.address}"
    about = f" {seen.repository}" if seen.repository else ""
    logger.info(
        "%s %s%s %d %s ms %s %s",
        *(seen.method, seen.route, about, seen.status, milliseconds, who, seen.request_id),
        extra={"fields": fields},
    )
