"""What tests of the edge share."""

import logging
from collections.abc import Generator

import pytest


@pytest.fixture
def loggers() -> Generator[tuple[logging.Logger, logging.Logger]]:
    """Those of haversack and of llama.cpp, left as they were found."""
    ours, llama = logging.getLogger("haversack"), logging.getLogger("haversack.llama")
    handlers, levels = list(ours.handlers), (ours.level, llama.level)
    yield ours, llama
    ours.handlers[:] = handlers
    ours.setLevel(levels[0])
    llama.setLevel(levels[1])
