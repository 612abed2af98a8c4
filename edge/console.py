"""Output for people. The answer goes to stdout, everything else to stderr."""

import io
import json
import logging
import os
import sys
import textwrap
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text

from haversack.devices.errors import HaversackError
from haversack.devices.units import format_bytes
from haversack.edge.kept_terminal import kept_terminal
from haversack.edge.loading import LoadProgress
from haversack.edge.stats import Stats

_log = logging.getLogger("haversack.progress")

_USUAL_WIDTH = 80  # of a terminal that does not tell
_CONTROLS = [*range(0x20), *range(0x7F, 0xA0)]
# An answer may hold bytes that would move the cursor, retitle the window or worse.
_SAFE_ON_TERMINAL = {code: "\N{REPLACEMENT CHARACTER}" for code in _CONTROLS if code not in (9, 10)}


def prepare_streams() -> None:
    """Make stdout UTF-8 unless it is a terminal with another encoding; no character raises an
    error.

    Python sets a closed stream to None. Without stderr, only the answer is written. Without stdout,
    raises HaversackError, because the answer cannot be written.
    """
    if sys.stderr is None:  # pyright: ignore[reportUnnecessaryComparison]
        sys.stderr = open(os.devnull, "w")
    if sys.stdout is None:  # pyright: ignore[reportUnnecessaryComparison]
        raise HaversackError("stdout is closed: give it a file or a pipe to write the answer to")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                encoding=stream.encoding if stream.isatty() else "utf-8", errors="replace"
            )


def log_to_stderr(verbose: bool) -> None:
    """Show warnings of haversack on stderr; with `verbose`, everything that it and llama.cpp
    log."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        logging.Formatter("%(name)s: %(message)s" if verbose else "haversack: %(message)s")
    )
    logger = logging.getLogger("haversack")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if verbose else logging.WARNING)
    if not verbose:  # the errors that are raised say what matters of it
        logging.getLogger("haversack.llama").setLevel(logging.CRITICAL)


def wants_detail(verbose: bool) -> bool:
    """Return whether summaries are shown on stderr: if it is a terminal, or with `verbose`."""
    return verbose or sys.stderr.isatty()


# --------------------------------------------------------------------- output
def write_text(text: str) -> None:
    """Write part of an answer to stdout at once; to a terminal without control characters."""
    sys.stdout.write(safe_on_terminal(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def safe_on_terminal(text: str) -> str:
    """Return `text` without control characters but tabs and line breaks."""
    return text.translate(_SAFE_ON_TERMINAL)


def end_text(text: str) -> None:
    """End the answer `text` on a terminal with a line break, if it has none."""
    if sys.stdout.isatty() and text and not text.endswith("\n"):
        write_text("\n")


def write_json(values: Mapping[str, Any]) -> None:
    """Write one JSON object to stdout, in one line of ASCII."""
    write_text(json.dumps(values, allow_nan=False) + "\n")


def notice(message: object) -> None:
    """Write one line to stderr. If that fails, neither the answer nor the exit code changes."""
    tell(one_line(message))


def tell(text: object) -> None:
    """Write lines to stderr, each as `notice` does; on a terminal no word is broken in two."""
    with suppress(OSError):
        told = str(text)
        if sys.stderr.isatty():
            told = wrapped(told, _terminal_width())
        print(told, file=sys.stderr, flush=True)


def _terminal_width() -> int:
    with suppress(OSError):
        return os.get_terminal_size(sys.stderr.fileno()).columns or _USUAL_WIDTH
    return _USUAL_WIDTH


def wrapped(text: str, width: int) -> str:
    """Return `text` with lines of `width` characters at most, broken between words."""
    return "\n".join(
        "\n".join(textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False))
        for line in text.split("\n")
    )


def counted(number: int, thing: str) -> str:
    """Return how many there are of a thing: "1 turn", "2 turns"."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def one_line(message: object) -> str:
    """Return `message` without line breaks and control characters."""
    return " ".join(str(message).split()).translate(_SAFE_ON_TERMINAL)


def write_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], to: TextIO | None = None
) -> None:
    """Write a table to stdout or `to`. A column whose name starts with ">" is set to the right."""
    table = Table(title=Text(one_line(title)), title_justify="left")
    for column in columns:
        right = column.startswith(">")
        table.add_column(column.removeprefix(">"), justify="right" if right else "left")
    for row in rows:
        table.add_row(*(Text(one_line(cell)) for cell in row))
    out = to or sys.stdout
    Console(file=out, width=None if out.isatty() else 160).print(table)
    out.flush()


# ------------------------------------------------------------------- progress
@contextmanager
def load_progress(verbose: bool) -> Generator[LoadProgress | None]:
    """Yield a function that shows progress bars on stderr; one that logs where it shows a log, and
    None where it is no terminal."""
    if verbose:  # bars would tear the log
        yield logged_progress()
        return
    if not sys.stderr.isatty():
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    progress = Progress(
        *columns,
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    tasks: dict[str, TaskID] = {}

    def report(what: str, share: float) -> None:
        if what not in tasks:
            tasks[what] = progress.add_task(what, total=1.0)
        progress.update(tasks[what], completed=share)

    with kept_terminal(), progress:  # the bars hide the cursor
        yield report


def logged_progress() -> LoadProgress:
    """Return a function that logs where a step begins, and each tenth of it that is done."""
    told: dict[str, int] = {}

    def report(what: str, share: float) -> None:
        tenths = int(10 * share)
        if told.get(what) != tenths:
            told[what] = tenths
            _log.info("%s: %d %%", what, 10 * tenths)

    return report


# -------------------------------------------------------------------- summary
def summary(stats: Stats, num_tokens: int) -> str:
    """Return one line that says what a generation of `num_tokens` took."""
    parts = [
        f"{num_tokens} tokens, {stats.decode_tok_s:.1f} tok/s",
        f"{stats.prompt_tokens} of the prompt in {stats.prefill_s:.2f} s",
    ]
    if stats.hits + stats.misses:
        parts += [
            f"{stats.hit_rate:.0%} of expert uses were hits",
            f"{format_bytes(stats.bytes_read)} read at {format_bytes(int(stats.disk_bytes_s))}/s",
            f"waited {stats.wait_s:.2f} s",
        ]
    if stats.device_hits:
        uses = stats.hits + stats.misses
        parts.append(f"{stats.device_hits / uses:.0%} of expert uses were on devices")
    if stats.uses_low + stats.uses_skipped:
        uses = stats.uses_high + stats.uses_low + stats.uses_skipped
        parts += [
            f"{stats.uses_low / uses:.1%} of expert uses were low copies,"
            f" {stats.uses_skipped / uses:.1%} were skipped, {stats.upgraded} copies were upgraded,"
            f" {format_bytes(stats.saved_bytes)} not read"
        ]
    if stats.uses_leaned:
        parts.append(f"{stats.uses_leaned} experts were chosen because they were in memory")
    if stats.draft_rounds:
        parts.append(f"{stats.draft_accepted} of {stats.drafted} drafted tokens were right")
    if stats.forecast_tok_s:
        parts.append(f"forecast were {stats.forecast_tok_s:.1f} tok/s")
    peak, budget = format_bytes(stats.ram_peak_bytes), format_bytes(stats.ram_budget_bytes)
    return "; ".join([*parts, f"peak {peak} of {budget}"])


def status_line(stats: Stats, used_bytes: int) -> str:
    """Return a short line of what a generation takes; `used_bytes` of the budget are in use."""
    parts = [f"{stats.decode_tok_s:.1f} tok/s"]
    if stats.hits + stats.misses:
        parts.append(f"{stats.hit_rate:.0%} hits")
        parts.append(f"disk {format_bytes(int(stats.disk_bytes_s))}/s")
    parts.append(f"{format_bytes(used_bytes)} of {format_bytes(stats.ram_budget_bytes)}")
    return " | ".join(parts)


def drafting(stats: Stats) -> str:
    """Return one line that says what drafts have brought, and why there are none now."""
    now = f"none are computed now: {stats.not_drafting}" if stats.not_drafting else "computed now"
    return (
        f"drafts: {stats.draft_accepted} of {stats.drafted} tokens right in {stats.draft_rounds}"
        f" passes of {stats.draft_rows} rows, {stats.draft_extra_reads:+.0f} experts read,"
        f" {stats.draft_saved_s:+.2f} s saved; {now}{_learning(stats)}"
    )


def _learning(stats: Stats) -> str:
    """Return what the model that drafts has learnt, if it learns or did."""
    if stats.not_learning:
        return f"; nothing more is learnt: {stats.not_learning}"
    if stats.draft_right_after < 0:
        return f"; learns: {stats.draft_steps} steps so far" if stats.draft_steps else ""
    return (
        f"; learnt in {stats.draft_steps} steps: {stats.draft_right_after:.0%} of the likeliest"
        f" tokens right, {stats.draft_right_before:.0%} before"
    )


def figure_text(name: str, value: Any) -> str:
    """Return a figure of a benchmark as people read it, by the unit that its name ends with."""
    if name.endswith(("_bytes", "_bytes_read", "_bytes_read_per_token", "bytes_read_per_token")):
        return format_bytes(int(value))
    if name.endswith("_bytes_s"):
        return f"{format_bytes(int(value))}/s"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
