"""Hit rates of the eviction rules on recorded routing."""

import csv
from pathlib import Path

import numpy as np
import pytest

from haversack.cache.policies import ExpectedUse, Lru
from haversack.edge.replay import Trace
from haversack.offload.pool import spare_slots
from haversack.tools.routing.measures import CACHE_SHARES, TRACES, recorded_traces
from haversack.tools.routing.simulate import DEFAULT, hit_rate, main, missed, rates


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
def test_the_default_is_never_below_lru_and_no_rule_above_the_oracle(share: float) -> None:
    for trace in recorded_traces():
        found = rates(trace, share)
        assert found[DEFAULT] >= found["lru"], (trace.name, found)
        assert max(found.values()) == found["belady"], (trace.name, found)


@pytest.mark.slow
@pytest.mark.parametrize("share", CACHE_SHARES)
def test_the_engines_spare_slots_do_not_bring_the_default_below_plain_lru(share: float) -> None:
    for trace in recorded_traces():
        size = len(trace.layers), trace.num_experts
        num_slots = int(share * size[0] * size[1])
        engines = hit_rate(trace, num_slots, ExpectedUse(*size), spare_slots(num_slots))
        assert engines >= hit_rate(trace, num_slots, Lru(*size)), trace.name


@pytest.mark.slow
def test_the_default_keeps_hits_below_one_tokens_working_set() -> None:
    """OLMoE uses 128 experts a token; LRU over 64 slots has lost each before it is asked again."""
    trace = next(trace for trace in recorded_traces() if trace.name.startswith("olmoe"))
    found = rates(trace, 1 / 16)
    assert found["lru"] < 0.001
    assert found[DEFAULT] > 0.25


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


def test_a_wrong_path_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "no.npz")]) == 2
    assert "cannot read the trace" in capsys.readouterr().err
