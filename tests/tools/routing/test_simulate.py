"""Hit rates of the eviction rules on recorded routing."""

import csv
from pathlib import Path

import numpy as np
import pytest

from haversack.edge.replay import Trace
from haversack.offload.pool import spare_slots
from haversack.tools.routing.measures import CACHE_SHARES, TRACES, recorded_traces
from haversack.tools.routing.policies import Lru
from haversack.tools.routing.simulate import DEFAULT, hit_rate, main, missed, policies


def test_a_trace_by_hand() -> None:
    """Two layers, one expert each a token, and room for three of them."""
    first, second = np.array([[0], [1], [0]]), np.array([[2], [2], [3]])
    trace = Trace("by hand", 4, [first, second])
    assert missed(trace, 3, Lru(2, 4)).tolist() == [2, 1, 1]
    assert hit_rate(trace, 3, Lru(2, 4)) == pytest.approx(2 / 6)
    assert hit_rate(trace, 8, Lru(2, 4)) == pytest.approx(2 / 6)
    assert hit_rate(trace, 2, Lru(2, 4)) == pytest.approx(1 / 6)


@pytest.mark.slow
@pytest.mark.parametrize("share", CACHE_SHARES)
def test_the_default_lies_between_lru_and_the_oracle(share: float) -> None:
    """Also with the spare slots that the engine empties at once."""
    for trace in recorded_traces():
        num_slots = int(share * len(trace.layers) * trace.num_experts)
        rules = policies(trace, num_slots)
        lru, default, oracle = (
            hit_rate(trace, num_slots, rules[name]()) for name in ("lru", DEFAULT, "belady")
        )
        engines = hit_rate(trace, num_slots, rules[DEFAULT](), spare_slots(num_slots))
        assert lru <= default <= oracle, trace.name
        assert lru <= engines <= oracle, trace.name


@pytest.mark.slow
def test_the_default_keeps_hits_below_one_tokens_working_set() -> None:
    """OLMoE uses 128 experts a token; LRU over 64 slots has lost each before it is asked again."""
    trace = next(trace for trace in recorded_traces() if trace.name.startswith("olmoe"))
    num_slots = len(trace.layers) * trace.num_experts // 16
    rules = policies(trace, num_slots)
    assert hit_rate(trace, num_slots, rules["lru"]()) < 0.001
    assert hit_rate(trace, num_slots, rules[DEFAULT]()) > 0.25


@pytest.mark.slow
def test_the_table_is_printed_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = TRACES / "gptoss-120b_top2_64tok.npz"
    assert main([str(path), "--csv", str(tmp_path / "rates.csv")]) == 0
    assert capsys.readouterr().out.count("gptoss-120b") == 3
    with (tmp_path / "rates.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["cache"] for row in rows] == ["12.5%", "25%", "50%"]
    assert float(rows[0]["lru"]) == 61.7
    for row in rows:  # no rule hits more often than the oracle
        hits = [float(row[rule]) for rule in row if rule not in ("trace", "cache")]
        assert max(hits) == float(row["belady"])


def test_a_wrong_path_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "no.npz")]) == 2
    assert "cannot read the trace" in capsys.readouterr().err
