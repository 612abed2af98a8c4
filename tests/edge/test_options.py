"""Options: defaults, files and text as users give them."""

import io
from pathlib import Path

import pytest

from haversack.devices.errors import PromptError
from haversack.edge.cache_dir import default_cache_dir
from haversack.edge.given_text import checked_text, decoded, longest_text_bytes, read_at_most
from haversack.edge.loading import builtin_model
from haversack.edge.measure_options import BenchOptions, EvalOptions
from haversack.edge.options import CacheOptions, ModelOptions, RunOptions, SamplingOptions
from haversack.edge.sampling import Sampling


def test_defaults_are_those_of_the_library() -> None:
    assert SamplingOptions().sampling() == Sampling()
    assert ModelOptions().path == builtin_model()
    assert CacheOptions().folder == default_cache_dir()


def test_a_seed_is_kept_or_drawn() -> None:
    assert SamplingOptions(seed=7).chosen_seed() == 7
    assert SamplingOptions().chosen_seed() >= 0


def test_a_schema_is_a_file_or_json(tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text('{"type": "null"}')
    from_file = SamplingOptions(json_schema=str(file)).sampling()
    assert from_file == SamplingOptions(json_schema='{"type": "null"}').sampling()
    with pytest.raises(PromptError, match="cannot read --json-schema"):
        SamplingOptions(json_schema=str(tmp_path / "none.json")).sampling()


def test_text_must_be_utf_8(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="--system is not UTF-8"):
        checked_text("--system", "a\udcff")
    with pytest.raises(PromptError, match=r"stdin is not UTF-8 text \(byte 0xe9 at 3\)"):
        decoded("stdin", b"caf\xe9 ")
    (tmp_path / "latin.gbnf").write_bytes(b"\xe9")
    with pytest.raises(PromptError, match=r"latin\.gbnf is not UTF-8"):
        SamplingOptions(grammar=tmp_path / "latin.gbnf").sampling()


def test_a_piped_prompt_loses_the_line_break_that_echo_adds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"two\nlines\n")))
    assert RunOptions().text(64) == "two\nlines"
    assert RunOptions(prompt="as it is\n").text(64) == "as it is\n"


@pytest.mark.parametrize("prompt", [None, "-"])
def test_of_a_piped_prompt_no_more_is_read_than_a_context_could_hold(
    monkeypatch: pytest.MonkeyPatch, prompt: str | None
) -> None:
    most_bytes = longest_text_bytes(ctx_tokens=64)
    pipe = io.BytesIO(b"x" * (most_bytes << 4))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(pipe))
    words = f"stdin is longer than {most_bytes} bytes, more than a context of 64 tokens can hold"
    with pytest.raises(PromptError, match=words):
        RunOptions(prompt=prompt).text(ctx_tokens=64)
    assert pipe.tell() == most_bytes + 1
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"x" * most_bytes)))
    assert len(RunOptions(prompt=prompt).text(ctx_tokens=64)) == most_bytes


def test_the_end_of_the_text_is_heard_at_once() -> None:
    """Ctrl-D on a terminal ends one read: whoever reads again waits for another."""

    class Typed(io.BytesIO):
        ended = False

        def read(self, size: int | None = -1, /) -> bytes:
            assert not self.ended, "read again after the end"
            found = super().read(size)
            self.ended = size is not None and len(found) < size
            return found

    assert read_at_most(Typed(b"typed"), 100) == b"typed"
    assert read_at_most(Typed(b"typed"), 3) == b"typ"
    assert read_at_most(Typed(b""), 100) == b""


def test_of_a_grammar_or_schema_no_more_is_read_than_one_may_have(tmp_path: Path) -> None:
    file = tmp_path / "huge"
    with file.open("wb") as huge:
        huge.truncate(16 << 20)
    with pytest.raises(PromptError, match=r"--grammar .*huge has over \d+ characters: shorten it"):
        SamplingOptions(grammar=file).sampling()
    with pytest.raises(PromptError, match=r"--json-schema .*huge has over \d+ characters"):
        SamplingOptions(json_schema=str(file)).sampling()


def test_a_benchmark_of_nothing_is_refused() -> None:
    with pytest.raises(PromptError, match="-p is 0: give 1 or more"):
        BenchOptions(prompt_tokens=0)


def test_a_picture_that_nothing_draws_is_refused() -> None:
    with pytest.raises(PromptError, match="--png is x, but only a sweep is drawn: give --sweep"):
        BenchOptions(png=Path("x"))
    with pytest.raises(PromptError, match="--png is x, but one mode is not drawn: give --all"):
        EvalOptions(text=Path("text"), png=Path("x"))


def test_a_byte_order_mark_in_a_file_is_no_content(tmp_path: Path) -> None:
    (tmp_path / "a.gbnf").write_text('\ufeffroot ::= "a"', encoding="utf-8")
    (tmp_path / "a.json").write_text('\ufeff{"const": 1}', encoding="utf-8")
    SamplingOptions(grammar=tmp_path / "a.gbnf").sampling()
    SamplingOptions(json_schema=str(tmp_path / "a.json")).sampling()
    SamplingOptions(json_schema='\ufeff{"const": 1}').sampling()
