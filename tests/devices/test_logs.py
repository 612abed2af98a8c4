"""llama.cpp's messages go to Python's logging, and into captures that ask why a call failed."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from haversack.devices.errors import ModelFileError
from haversack.devices.ggml import GgufHeader
from haversack.devices.llama_model import LlamaModel
from haversack.devices.logs import LogCapture, captured_logs


@pytest.fixture
def no_model(tmp_path: Path) -> Path:
    """A file that makes ggml complain."""
    path = tmp_path / "model.gguf"
    path.write_bytes(b"nope, no model")
    return path


def fail(path: Path) -> None:
    with pytest.raises(ModelFileError):
        GgufHeader(path)


def test_a_failure_is_told_in_llama_cpps_words(no_model: Path) -> None:
    with captured_logs() as log:
        fail(no_model)
    assert log.reason() == "invalid magic characters: 'nope', expected 'GGUF'"
    assert log.errors == log.lines


def test_both_of_its_libraries_are_heard(no_model: Path) -> None:
    """ggml reads files, libllama loads models."""
    with captured_logs() as log, pytest.raises(ModelFileError, match=r"cannot load .*magic"):
        LlamaModel(no_model)
    assert any("gguf_init" in line for line in log.errors)
    assert any("llama_model_load" in line for line in log.errors)


def test_lines_without_an_error_are_kept_apart(known_answer_model: Path) -> None:
    with captured_logs() as log:
        model = LlamaModel(known_answer_model, dry=True)
        model.close()
    assert any("general.architecture" in line for line in log.lines)
    assert log.errors == []
    assert log.reason() == "llama.cpp gave no reason"
    assert all(log.lines)  # no empty ones


def test_a_warning_is_no_error(tiny_model: Callable[..., Path]) -> None:
    path = tiny_model()
    with captured_logs() as log:
        LlamaModel(path, dry=True).close()
    assert any("dummy tokens" in line for line in log.lines)  # it has no vocabulary
    assert log.errors == []


def test_nothing_is_kept_before_and_after_the_block(no_model: Path) -> None:
    fail(no_model)
    with captured_logs() as log:
        pass
    fail(no_model)
    assert log.lines == []


def test_blocks_may_be_nested(no_model: Path) -> None:
    with captured_logs() as outer:
        with captured_logs() as inner:
            fail(no_model)
        fail(no_model)
    assert len(outer.errors) == 2 * len(inner.errors) > 0


def test_an_error_said_twice_is_told_once() -> None:
    log = LogCapture()
    log.errors = ["load: no room", "read: no room", "load: gave up: twice"]
    assert log.reason() == "no room; gave up: twice"


def test_levels_and_the_name_of_the_logger(
    known_answer_model: Path,
    no_model: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with caplog.at_level(logging.DEBUG, "haversack"):
        fail(no_model)
        model = LlamaModel(known_answer_model, dry=True)
        model.close()
    records = [r for r in caplog.records if r.name == "haversack.llama"]
    levels = {record.levelno for record in records}
    assert {logging.DEBUG, logging.ERROR} <= levels <= {10, logging.WARNING, logging.ERROR}
    failed = next(r for r in records if "invalid magic" in r.getMessage())
    assert failed.levelno == logging.ERROR
    assert capfd.readouterr() == ("", "")  # all of it went to logging


def test_a_library_is_silent_by_itself() -> None:
    """Without handlers of an application, Python would print warnings to stderr."""
    handlers = logging.getLogger("haversack").handlers
    assert any(isinstance(handler, logging.NullHandler) for handler in handlers)
