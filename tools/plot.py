"""Draw what the benchmarks wrote.

    python -m haversack.tools.plot stream tools/results/stream.csv stream.png
    python -m haversack.tools.plot policies tools/results/policies.csv policies.png

`stream`: tokens a second against the share of the experts in slots, by the speed of the drive,
beside the bound. `policies`: hit rates against that share by eviction rule, beside the oracle, a
picture for each recorded model. Needs the extra `train` (matplotlib).
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

Row = dict[str, str]

_ORACLE = "belady"


def read_rows(path: Path) -> list[Row]:
    """The rows of a CSV file. Raises ValueError if there are none."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise ValueError(f"{path} has no rows: have a benchmark write it with --csv")
    return rows


def draw_stream(rows: Sequence[Row], path: Path) -> None:
    """Speed and bound against the share of the experts in slots, two lines for each drive."""
    figure, (axes,) = _figure(1)
    for rate in sorted({float(row["rate_bytes_s"]) for row in rows}):
        chosen = sorted(
            (row for row in rows if float(row["rate_bytes_s"]) == rate),
            key=lambda row: float(row["share"]),
        )
        shares = [100 * float(row["share"]) for row in chosen]
        label = f"drive of {rate / 1e9:g} GB/s"
        (line,) = axes.plot(
            shares, [1 / float(r["s_per_token"]) for r in chosen], "o-", label=label
        )
        bounds = [1 / float(row["bound_s"]) for row in chosen]
        axes.plot(shares, bounds, ":", color=line.get_color(), label=f"bound, {label}")
    axes.set(xlabel="experts in slots, %", ylabel="tokens a second")
    axes.set_ylim(bottom=0)
    _finish(figure, [axes], path)


def draw_policies(rows: Sequence[Row], path: Path) -> None:
    """Hit rates of each rule against the share in the cache, a panel for each recorded model."""
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


DRAWN = {"stream": draw_stream, "policies": draw_policies}


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw what the command line asks for; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=tuple(DRAWN))
    parser.add_argument("results", type=Path, help="the CSV file of a benchmark")
    parser.add_argument("picture", type=Path, help="where the picture is written (.png, .svg)")
    given = parser.parse_args(arguments)
    try:
        DRAWN[given.what](read_rows(given.results), given.picture)
    except KeyError as error:
        print(f"error: {given.results} has no column {error}: not {given.what}", file=sys.stderr)
        return 2
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
