"""The benchmark of drafts keeps to the planned bytes."""

import pytest

from haversack.tools.bench.drafts import main, text_of


def test_a_text_repeats_itself_and_has_its_length() -> None:
    tokens = text_of(1000)
    assert len(tokens) == 1000 and tokens == text_of(1000)
    pairs = list(zip(tokens, tokens[1:], tokens[2:], strict=False))
    assert len(set(pairs)) < 0.9 * len(pairs)


def test_a_short_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--tokens", "20000", "--steps", "50", "--rounds", "1"]) in (0, 1)
    assert "which are planned: holds" in capsys.readouterr().out
