"""The benchmark of speculation in less memory: a short run."""

import pytest

from haversack.tools.bench.specmemo import kept_of, main
from haversack.tools.bench.speculation import Run


def test_speed_is_compared_by_medians() -> None:
    runs = {
        share: [Run([], tok_s, 0.5) for tok_s in speeds]
        for share, speeds in {1.0: (9.0, 10.0, 50.0), 0.35: (1.0, 9.5, 9.6)}.items()
    }
    assert kept_of(runs, 0.35) == pytest.approx(0.95)


def test_a_short_run(capsys: pytest.CaptureFixture[str]) -> None:
    """Its bounds say nothing here: the machine may be busy."""
    main(["--sets", "copy", "--per-set", "1", "--tokens", "8", "--rounds", "1", "--ctx", "512"])
    shown = capsys.readouterr().out
    assert shown.count("taken / planned") == 5 and "of the speed is kept" in shown
    assert "| 25% | none |" in shown
