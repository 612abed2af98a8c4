"""Ctrl-C ends the call that runs, and nothing else."""

import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from haversack import edge

TinyModel = Callable[..., Path]


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is no signal to one process there")
@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "resident"])
# Ctrl-C may come between a file's opening and its `with`: then it is closed with a warning.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_a_model_answers_after_ctrl_c(
    tiny_model: TinyModel, trunk_dir: Path, streamed: bool
) -> None:
    planned = edge.plan(tiny_model(), "1GiB", ctx=8192, batch=64)
    if streamed:
        ram = (planned.floor_bytes + planned.full_bytes) // 2
        planned = edge.plan(tiny_model(), ram, ctx=8192, batch=64)
    with edge.load(planned, options=edge.LoadOptions(cache_dir=trunk_dir)) as model:
        before = model.generate([1, 2, 3], 5, temperature=0).text
        main = threading.main_thread().ident
        assert main is not None
        threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            while True:
                _ = model.generate([token % 500 for token in range(8000)], 1).text
        model.check_integrity()
        assert model.generate([1, 2, 3], 5, temperature=0).text == before != ""
