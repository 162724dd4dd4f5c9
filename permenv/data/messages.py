"""What is said of data: the log of the package, and the error about data that cannot be used, in printable lines."""

from __future__ import annotations

import logging

log = logging.getLogger("permenv")


def printable(text: str) -> str:
    """Escape line breaks and control characters, so that the name of a file cannot write to a log or a terminal."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def _keep_to_one_line(record: logging.LogRecord) -> bool:
    record.msg, record.args = printable(record.getMessage()), ()
    return True


log.addFilter(_keep_to_one_line)  # messages contain names of files and what decoders say about them


class DataError(ValueError):
    """Data that cannot be used. The message names the value, the place and the remedy, in one printable line."""

    def __init__(self, message: str):
        super().__init__(printable(message))
