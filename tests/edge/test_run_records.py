"""What runs measured, in a file that any process may write and that may be damaged."""

from pathlib import Path

import pytest

from haversack.edge.run_records import RunRecord, keep_record, read_records

RECORD = RunRecord(0.01, 1e9, 2, True, 0.5, 1.5, device_shares={"CUDA0": 0.25})


def test_records_are_kept_newest_last(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    for number in range(70):
        keep_record(folder, f"model {number}", RECORD)
    keep_record(folder, "model 10", RunRecord(0.02, 1e9, 2, False))
    found = read_records(folder)
    assert len(found) == 64 and list(found)[-2:] == ["model 69", "model 10"]
    assert found["model 69"] == RECORD and found["model 10"].compute_s == 0.02


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"a": 1}', '{"a": {"compute_s": 0}}', "[" * 99999]
)
def test_a_damaged_file_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "runs.json").write_text(text)
    assert read_records(tmp_path) == {}
    keep_record(tmp_path, "model", RECORD)
    assert read_records(tmp_path) == {"model": RECORD}


@pytest.mark.parametrize("wrong", [(0.0, 1e9, 1), (1.0, float("nan"), 1), (1.0, 1e9, 0)])
def test_a_record_is_of_something_measured(wrong: tuple[float, float, int]) -> None:
    with pytest.raises(ValueError, match="nothing that a run measures"):
        RunRecord(*wrong, was_streamed=True)
