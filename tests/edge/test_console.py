"""What people see: safe on a terminal, exact in a pipe, and one line where one is promised."""

import io
import logging
from dataclasses import replace

import pytest

from haversack.edge import console
from haversack.edge.stats import Stats


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def stats(hits: int, misses: int, low: int = 0, skipped: int = 0, leaned: int = 0) -> Stats:
    return Stats(
        prompt_tokens=12,
        tokens=10,
        prefill_s=0.5,
        decode_s=2.0,
        hits=hits,
        misses=misses,
        uses_high=hits + misses - low - skipped,
        uses_low=low,
        uses_skipped=skipped,
        uses_leaned=leaned,
        upgraded=2 if low else 0,
        saved_bytes=(low + skipped) << 20,
        device_hits=0,
        device_promoted=0,
        device_moved_bytes=0,
        bytes_read=3 << 20,
        read_s=0.5,
        wait_s=0.25,
        own_s=0.125,
        prefetched=0,
        prefetched_right=0,
        prefetchable=0,
        needed=0,
        prefetching=False,
        decode_hits=hits,
        decode_misses=misses,
        decode_bytes_read=3 << 20,
        decode_wait_s=0.25,
        forecast_tok_s=0.0,
        forecast_hit_rate=0.0,
        draft_rounds=2,
        draft_rows=5,
        drafted=3,
        draft_accepted=1,
        draft_extra_reads=4.5,
        draft_saved_s=-0.25,
        not_drafting="too dear",
        draft_steps=0,
        draft_right_before=-1.0,
        draft_right_after=-1.0,
        not_learning="",
        ram_budget_bytes=2 << 30,
        ram_planned_bytes=1 << 30,
        ram_peak_bytes=1 << 29,
    )


def test_one_line_has_no_breaks_and_no_control_characters() -> None:
    assert console.one_line("a\n  b\tc\x1b[31m") == "a b c\N{REPLACEMENT CHARACTER}[31m"


def test_a_terminal_gets_no_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = FakeTerminal()
    monkeypatch.setattr("sys.stdout", terminal)
    console.write_text("red: \x1b[31m\x07\tnext\nline\r")
    assert terminal.getvalue() == "red: \ufffd[31m\ufffd\tnext\nline\ufffd"


def test_a_pipe_gets_every_character(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = io.StringIO()
    monkeypatch.setattr("sys.stdout", pipe)
    console.write_text("\x1b[31m")
    console.end_text("no line break is added")
    assert pipe.getvalue() == "\x1b[31m"


def test_an_answer_on_a_terminal_ends_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = FakeTerminal()
    monkeypatch.setattr("sys.stdout", terminal)
    for text in ("", "ends\n", "does not"):
        console.end_text(text)
    assert terminal.getvalue() == "\n"


def test_streams_take_every_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="ascii"))
    console.prepare_streams()
    console.write_text("é\udcff")
    assert raw.getvalue() == "é?".encode()


def test_no_bars_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", io.StringIO())
    with console.load_progress(verbose=False) as report:
        assert report is None


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = FakeTerminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with console.load_progress(verbose=False) as report:
        assert report is not None
        report("loading", 0.5)
        report("loading", 1.0)
    assert "loading" in terminal.getvalue()


def test_a_log_tells_each_tenth_of_a_step(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "haversack.progress")
    with console.load_progress(verbose=True) as report:
        assert report is not None
        for share in (0.0, 0.01, 0.55, 0.59, 1.0):
            report("making low copies", share)
    assert caplog.messages == [f"making low copies: {number} %" for number in (0, 50, 100)]


def test_a_summary_tells_of_reads_where_there_are_any() -> None:
    streamed = console.summary(stats(30, 10), 11)
    assert streamed.startswith("11 tokens, 5.0 tok/s; 12 of the prompt in 0.50 s; 75% of")
    assert "3.0 MiB read at 6.0 MiB/s; waited 0.25 s; 1 of 3 drafted tokens were right" in streamed
    assert streamed.endswith("; peak 512.0 MiB of 2.0 GiB")
    assert "read" not in console.summary(stats(0, 0), 11)
    assert "on devices" not in streamed
    assert "25% of expert uses were on devices" in console.summary(
        replace(stats(30, 10), device_hits=10), 11
    )
    assert "low copies" not in streamed
    mixed = console.summary(stats(30, 10, low=4, skipped=1), 11)
    assert "10.0% of expert uses were low copies, 2.5% were skipped, 2 copies were up" in mixed
    assert "5.0 MiB not read" in mixed


def test_a_line_says_what_drafts_have_brought() -> None:
    assert console.drafting(stats(0, 0)) == (
        "drafts: 1 of 3 tokens right in 2 passes of 5 rows, +4 experts read,"
        " -0.25 s saved;"
        " none are computed now: too dear"
    )


def test_a_table_keeps_markup_as_text() -> None:
    out = io.StringIO()
    console.write_table("[bold]x[/bold]", ("name", ">size"), [("[red]a", "1"), ("b", "22")], out)
    assert "[bold]x[/bold]" in out.getvalue()
    assert "[red]a" in out.getvalue()


@pytest.mark.parametrize("verbose", [False, True])
def test_the_log_goes_to_stderr(
    loggers: tuple[logging.Logger, logging.Logger], monkeypatch: pytest.MonkeyPatch, verbose: bool
) -> None:
    ours, llama = loggers
    stderr = io.StringIO()
    monkeypatch.setattr("sys.stderr", stderr)
    console.log_to_stderr(verbose)
    ours.warning("a keyword is ignored")
    ours.info("loaded")
    llama.warning("noise")
    shown = stderr.getvalue()
    assert "haversack: a keyword is ignored\n" in shown
    assert ("loaded" in shown) is ("noise" in shown) is verbose


def test_words_stay_whole_on_a_narrow_terminal() -> None:
    table = "  trunk     4.0 MiB\n  KV cache  2.1 MiB"
    assert console.wrapped(table, 80) == table
    assert console.wrapped("one two-three four", 9) == "one\ntwo-three\nfour"
    assert console.wrapped("a /very/long/path", 9) == "a\n/very/long/path"
