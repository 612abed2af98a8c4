"""Draw what the benchmarks wrote.

    python -m haversack.tools.bench.plot stream tools/results/*_stream.csv stream.png
    python -m haversack.tools.bench.plot policies tools/results/policies.csv policies.png
    python -m haversack.tools.bench.plot gpu gpu.csv gpu.png

`stream`: tokens a second against the share of the experts in slots, by the speed of the drive,
beside the bound. `policies`: hit rates against that share by eviction rule, beside the oracle. Both
have a panel for each recorded model. `gpu`: tokens a second against the memory of a GPU, by engine.
Needs the extra `train` (matplotlib).
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from haversack.tools.command_line import tool

Row = dict[str, str]

_ORACLE = "belady"
_GIB = 1024**3


def read_rows(path: Path) -> list[Row]:
    """Read the rows of a CSV file. Raises ValueError if there are none."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise ValueError(f"{path} has no rows: have a benchmark write it with --csv")
    return rows


def draw_stream(rows: Sequence[Row], path: Path) -> None:
    """Draw speed and bound against the share of the experts in slots: a panel for each recorded
    model, a line for each drive, without and with prefetching."""
    traces = sorted({row["trace"] for row in rows})
    figure, panels = _figure(len(traces))
    for axes, trace in zip(panels, traces, strict=True):
        _draw_speeds([row for row in rows if row["trace"] == trace], axes)
        axes.set(xlabel="experts in slots, %", ylabel="tokens a second", title=trace.split("_")[0])
        axes.set_ylim(bottom=0)
    _finish(figure, panels, path)


def _draw_speeds(rows: Sequence[Row], axes: Any) -> None:
    for rate, recall in sorted({(float(r["rate_bytes_s"]), float(r["recall"])) for r in rows}):
        chosen = sorted(
            (r for r in rows if (float(r["rate_bytes_s"]), float(r["recall"])) == (rate, recall)),
            key=lambda row: float(row["share"]),
        )
        shares = [100 * float(row["share"]) for row in chosen]
        label = f"{rate / 1e9:g} GB/s" + (", prefetching" if recall else "")
        (line,) = axes.plot(
            shares, [1 / float(r["s_per_token"]) for r in chosen], "o-", label=label
        )
        bounds = [1 / float(row["bound_s"]) for row in chosen]
        if not recall:
            axes.plot(shares, bounds, ":", color=line.get_color(), label=f"bound, {label}")


def draw_policies(rows: Sequence[Row], path: Path) -> None:
    """Draw hit rates of each policy against the share in the cache, a panel for each recorded
    model."""
    traces = sorted({row["trace"] for row in rows})
    rules = [name for name in rows[0] if name not in ("trace", "cache")]
    figure, panels = _figure(len(traces))
    for axes, trace in zip(panels, traces, strict=True):
        chosen = [row for row in rows if row["trace"] == trace]
        shares = [float(row["cache"].rstrip("%")) for row in chosen]
        for rule in rules:
            style = "k:" if rule == _ORACLE else "o-"
            axes.plot(shares, [float(row[rule]) for row in chosen], style, label=rule, markersize=3)
        axes.set(xlabel="experts in the cache, %", ylabel="hits, %", title=trace.split("_")[0])
    _finish(figure, panels[:1], path)


def draw_gpu(rows: Sequence[Row], path: Path) -> None:
    """Draw the speed of decoding against the bytes of a GPU's memory, a line for each engine."""
    figure, (axes,) = _figure(1)
    for engine in dict.fromkeys(row["engine"] for row in rows):
        chosen = [row for row in rows if row["engine"] == engine and int(row["vram_bytes"])]
        sizes = [int(row["vram_bytes"]) / _GIB for row in chosen]
        axes.plot(sizes, [float(row["decode_tok_s"]) for row in chosen], "o-", label=engine)
    least = next(row for row in rows if not int(row["vram_bytes"]))
    label = f"{least['engine']}, all experts on the CPU"
    axes.axhline(float(least["decode_tok_s"]), color="k", linestyle=":", label=label)
    axes.set(xlabel="memory of the GPU, GiB", ylabel="tokens a second")
    axes.set_ylim(bottom=0)
    _finish(figure, [axes], path)


def _figure(num_panels: int) -> tuple[Any, list[Any]]:
    import_module("matplotlib").use("agg")
    subplots = import_module("matplotlib.pyplot").subplots
    width = 8 if num_panels == 1 else 4.5 * num_panels
    figure, panels = subplots(1, num_panels, figsize=(width, 4.5), squeeze=False)
    return figure, list(panels[0])


def _finish(figure: Any, with_legend: Sequence[Any], path: Path) -> None:
    for axes in with_legend:
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=100, bbox_inches="tight")


DRAWN = {"stream": draw_stream, "policies": draw_policies, "gpu": draw_gpu}


@tool
def main(arguments: Sequence[str] | None) -> int:
    """Draw what the command line asks for; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=tuple(DRAWN))
    parser.add_argument("results", type=Path, nargs="+", help="CSV files of a benchmark")
    parser.add_argument("picture", type=Path, help="where the picture is written (.png, .svg)")
    given = parser.parse_args(arguments)
    try:
        DRAWN[given.what]([r for path in given.results for r in read_rows(path)], given.picture)
    except KeyError as error:
        names = ", ".join(map(str, given.results))
        raise ValueError(f"{names} has no column {error}: not {given.what}") from error
    return 0


if __name__ == "__main__":
    sys.exit(main())
