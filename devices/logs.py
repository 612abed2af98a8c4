"""What llama.cpp says: sent to `logging.getLogger("haversack")`, and kept where a call asks."""

import logging
import threading

from haversack.devices._native import llama

logging.getLogger("haversack").addHandler(logging.NullHandler())
_logger = logging.getLogger("haversack.llama")
_LEVELS = {1: logging.DEBUG, 2: logging.DEBUG, 3: logging.WARNING, 4: logging.ERROR}
_ERROR_LEVEL = 4
_captures: list["LogCapture"] = []


class LogCapture:
    """Lines llama.cpp wrote in this thread while the capture was open."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.lines: list[str] = []
        self.errors: list[str] = []

    def reason(self) -> str:
        """llama.cpp's own words for the last failure, or a hint that it gave none."""
        told = [line.split(": ", 1)[-1] for line in self.errors]
        return "; ".join(dict.fromkeys(told)) or "llama.cpp gave no reason"


def _receive(level: int, text: bytes, _: object) -> None:
    line = text.decode(errors="replace").rstrip()
    if not line or line == ".":
        return
    _logger.log(_LEVELS.get(level, logging.DEBUG), line)
    for capture in _captures:
        if capture.thread != threading.get_ident():
            continue
        capture.lines.append(line)
        if level == _ERROR_LEVEL:
            capture.errors.append(line)


_callback = llama.llama_log_callback(_receive)  # kept alive for as long as the process
llama.llama_log_set(_callback, None)  # before that llama.cpp writes to stderr


class captured_logs:
    """Collect llama.cpp's log lines inside the block. A class, because it stands around every
    token: a generator takes three times as long."""

    def __enter__(self) -> LogCapture:
        llama.llama_log_set(_callback, None)
        self._capture = LogCapture()
        _captures.append(self._capture)
        return self._capture

    def __exit__(self, *_: object) -> None:
        _captures.remove(self._capture)
