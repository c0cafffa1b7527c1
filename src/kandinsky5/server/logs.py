"""The server's log: one line for each thing that happened, as JSON or for a person.

In: log records, with their facts under `facts`. Out: lines. Prompts and keys are never among the facts. Refuses to
know: where lines go.
"""

import json
import logging
import re
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

log = logging.getLogger("kandinsky5.server")

_ODD = re.compile(r"""[\s"'=\\]""")
"""Of what a value must hold none to stand without quotes."""


class LogFormat(StrEnum):
    """How a line is written."""

    json = "json"
    text = "text"


class Lines(logging.Formatter):
    """Formats records in one of the two ways."""

    def __init__(self, form: LogFormat) -> None:
        super().__init__()
        self._form = form

    def format(self, record: logging.LogRecord) -> str:
        """One line; a traceback is part of it in JSON, and below it for a person."""
        facts: dict[str, Any] = getattr(record, "facts", {})
        trace = self.formatException(record.exc_info) if record.exc_info else None
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        if self._form is LogFormat.json:
            line = {
                "time": moment,
                "level": record.levelname,
                "logger": record.name,
                "event": record.getMessage(),
            }
            return json.dumps({**line, **facts, **({"trace": trace} if trace else {})}, default=str)
        told = " ".join(f"{name}={_fact(value)}" for name, value in facts.items())
        return f"{moment} {record.levelname} {_escaped(record.getMessage())} {told}".rstrip() + (
            f"\n{trace}" if trace else ""
        )


def _fact(value: Any) -> str:
    """A value as a person reads it. What would not be one word is quoted: a client may have made it up."""
    text = str(value)
    return json.dumps(text) if _ODD.search(text) or not text.isprintable() else text


def _escaped(message: str) -> str:
    """A message on one line, without what a terminal obeys."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)


def tell(event: str, *, level: int = logging.INFO, **facts: Any) -> None:
    """Log an event with its facts."""
    log.log(level, event, extra={"facts": facts})
