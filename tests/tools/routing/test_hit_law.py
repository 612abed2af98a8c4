"""The law of misses in forecasts is that of the recorded routing."""

import math
import shutil
from pathlib import Path

import pytest

from haversack.edge.hits import MISS_LAW
from haversack.edge.replay import Trace
from haversack.tools.routing.hit_law import Point, errors_left_out, fitted, main, points_of
from haversack.tools.routing.measures import TRACES, recorded_traces


@pytest.fixture(scope="module")
def models() -> dict[str, list[Point]]:
    return {trace.name: points_of(trace) for trace in recorded_traces()}


def test_forecasts_use_the_law_that_fits(models: dict[str, list[Point]]) -> None:
    assert fitted(list(models.values())) == pytest.approx(MISS_LAW, abs=0.0005)


def test_a_model_left_out_is_forecast_within_what_is_said(models: dict[str, list[Point]]) -> None:
    errors = [error for found in errors_left_out(models).values() for error in found]
    assert math.sqrt(sum(error**2 for error in errors) / len(errors)) < 0.05
    assert max(map(abs, errors)) < 0.075


def test_what_fits_whole_tells_nothing(models: dict[str, list[Point]]) -> None:
    (trace,) = [each for each in recorded_traces() if each.name.startswith("gptoss")]
    assert isinstance(trace, Trace) and points_of(trace, [1.0]) == []


def test_the_command_says_law_and_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (recorded,) = TRACES.glob("gptoss*.npz")
    twin = shutil.copy(recorded, tmp_path / "twin.npz")
    assert main([str(recorded), str(twin)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("misses = (1 - share) * exp(-") and "| twin | 12.5% |" in out
