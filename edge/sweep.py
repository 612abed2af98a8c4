"""Sweeps: a model's speed at budgets from the least that works to all in memory, and its picture.

First the model goes on from random tokens; where its text ends, it begins another. Each budget then
computes these tokens, so that the routing is that of texts of the model's own, and all must give
the same logits if they are exact.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from haversack.devices.errors import HaversackError
from haversack.devices.units import format_bytes
from haversack.edge.bench import Work, decode, logits_sha256, random_tokens
from haversack.edge.console import load_progress, notice, write_json, write_table
from haversack.edge.forecasting import Facts, Forecast, forecast_of, known_facts, shown
from haversack.edge.loading import LoadOptions, load
from haversack.edge.measure_options import BenchOptions
from haversack.edge.model import Model
from haversack.edge.model_plan import EXACT, Plan
from haversack.edge.picture import blank_figure, write_picture
from haversack.edge.planner import with_ram

_BAR_CHARS = 40  # of the longest bar


@dataclass(frozen=True)
class SweepPoint:
    """What one budget gave after the tokens with which slots fill, and what was forecast: None
    where too little was known. `share` is that of the experts that had slots."""

    ram_bytes: int
    mode: str
    share: float
    tok_s: float
    hit_rate: float
    bytes_read_per_token: float
    wait_s_per_token: float
    ram_peak_bytes: int
    forecast: Forecast | None

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as plain values."""
        return asdict(self)


def budgets(planned: Plan, count: int) -> list[int]:
    """Return `count` budgets, at least two, evenly from the least that works to the least with all
    in memory; only that where nothing can be streamed."""
    least, most = planned.floor_bytes, planned.full_bytes
    if least >= most:
        return [most]
    return [least + (most - least) * number // (count - 1) for number in range(count)]


class Sweep:
    """Runs a model in one budget after the other."""

    def __init__(self, planned: Plan, asked: BenchOptions, cache_dir: Path) -> None:
        """Each run computes the prompt that was `asked` for, then single tokens."""
        self._planned, self._asked, self._cache_dir = planned, asked, cache_dir
        self._sha256: str | None = None

    def run(self, ram_bytes: Sequence[int], options: LoadOptions) -> Iterator[SweepPoint]:
        """Yield what each budget gives. Nothing is drafted, kept or read back.

        Raises what `edge.load` raises, and HaversackError if a budget gives other logits.
        """
        plain = replace(options, warm_start=False, speculate="off", cache_dir=self._cache_dir)
        with load(with_ram(self._planned, max(ram_bytes)), options=plain) as model:
            work = self._work(model)
        # measured once, so that forecasts differ by their budgets alone
        facts = known_facts(with_ram(self._planned, min(ram_bytes)), self._cache_dir, measure=True)
        for num_bytes in ram_bytes:
            planned = with_ram(self._planned, num_bytes)
            with load(planned, options=plain) as model:
                yield self._measured(model, work, facts)

    def _work(self, model: Model) -> Work:
        asked, start = self._asked, model.tokenize("")
        tokens = random_tokens(model.vocab_size, asked.prompt_tokens, asked.seed)
        while (num_left := asked.num_tokens - len(tokens)) > 0:
            with model.generate(tokens, num_left, seed=len(tokens)) as generation:
                for _ in generation:
                    pass
            tokens += generation.tokens
            if len(generation.tokens) < num_left:
                tokens += start or random_tokens(model.vocab_size, 1, len(tokens))
        return Work(tokens[: asked.num_tokens], asked.prompt_tokens, asked.warm_tokens)

    def _measured(self, model: Model, work: Work, facts: Facts) -> SweepPoint:
        decoded, planned = decode(model, work), model.plan
        if planned.fidelity == EXACT:
            self._compare(logits_sha256(decoded.logits))
        spent = decoded.timed
        return SweepPoint(
            ram_bytes=planned.ram_bytes,
            mode=planned.mode,
            share=min(1.0, planned.slot_bytes / max(1, planned.expert_bytes)),
            tok_s=spent.decode_tok_s,
            hit_rate=spent.decode_hit_rate,
            bytes_read_per_token=spent.decode_bytes_read / spent.tokens,
            wait_s_per_token=spent.decode_wait_s / spent.tokens,
            ram_peak_bytes=spent.ram_peak_bytes,
            forecast=forecast_of(planned, facts),
        )

    def _compare(self, sha256: str) -> None:
        self._sha256 = self._sha256 or sha256
        if sha256 != self._sha256:
            raise HaversackError(
                f"{self._planned.path.name} computed other logits in another budget: that is a bug,"
                " please report it"
            )


def table_rows(points: Sequence[SweepPoint]) -> list[tuple[str, ...]]:
    """Return a row of cells for each point; the last is a bar as long as it is fast."""
    fastest = max(point.tok_s for point in points)
    return [
        (
            format_bytes(point.ram_bytes),
            f"{point.share:.0%}",
            f"{point.hit_rate:.0%}",
            shown(point.tok_s),
            "" if point.forecast is None else str(point.forecast),
            "█" * max(1, round(_BAR_CHARS * point.tok_s / fastest)),
        )
        for point in points
    ]


COLUMNS = (">budget", ">slots", ">hits", ">tok/s", "forecast", "")


def draw(title: str, points: Sequence[SweepPoint], path: Path) -> None:
    """Draw tokens a second against the budget, beside what was forecast. Raises HaversackError
    where matplotlib is missing, StorageError."""
    figure = blank_figure(8, 4.5)
    axes = figure.subplots()
    gib = [point.ram_bytes / 2**30 for point in points]
    axes.plot(gib, [point.tok_s for point in points], "o-", label="measured")
    known = [(x, point.forecast) for x, point in zip(gib, points, strict=True) if point.forecast]
    if known:
        at, found = [x for x, _ in known], [each for _, each in known]
        axes.plot(at, [each.tok_s for each in found], "--", label="forecast")
        lows, highs = [each.low_tok_s for each in found], [each.high_tok_s for each in found]
        axes.fill_between(at, lows, highs, alpha=0.15)
    axes.set(xlabel="budget, GiB", ylabel="tokens a second", title=title)
    axes.set_ylim(bottom=0)
    axes.legend()
    write_picture(figure, path)


def show_sweep(planned: Plan, asked: BenchOptions, cache_dir: Path, as_json: bool) -> None:
    """Run the sweep that was asked for, write its figures and draw its picture."""
    assert asked.sweep is not None, "a sweep was asked for"
    sweep, several = Sweep(planned, asked, cache_dir), budgets(planned, asked.sweep)
    if len(several) == 1:
        notice(f"haversack: {planned.path.name} has one budget only: it streams no experts")
    with load_progress(False) as progress:
        points = list(sweep.run(several, LoadOptions(progress=progress)))
    if as_json:
        shown = [point.to_dict() for point in points]
        write_json({"model": str(planned.path), "budgets": shown})
    else:
        title = f"{planned.path.name}, {asked.tokens} tokens in each budget"
        write_table(title, COLUMNS, table_rows(points))
    try:
        draw(planned.path.name, points, asked.png)
        notice(f"haversack: drawn in {asked.png}")
    except HaversackError as error:  # the table is what was measured
        notice(f"haversack: {error}")
