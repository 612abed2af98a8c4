"""A model in F16 has the values of the quantized one, and says nearly the same."""

from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, dequantize

from haversack import edge
from haversack.tools.models import half_precision

DRAFT = Path(__file__).parents[2] / "data/models/tales-draft.gguf"


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("half") / "half.gguf"
    assert half_precision.main([str(DRAFT), str(path)]) == 0
    return path


def test_values_and_metadata_are_those_of_the_quantized_model(half: Path) -> None:
    before, after = GGUFReader(DRAFT), GGUFReader(half)
    assert set(after.fields) == {*before.fields, "general.file_type"}
    assert after.fields["tokenizer.ggml.tokens"].contents() == (
        before.fields["tokenizer.ggml.tokens"].contents()
    )
    for quantized, tensor in zip(before.tensors, after.tensors, strict=True):
        assert tensor.name == quantized.name
        assert tensor.data.dtype == (np.float16 if tensor.data.ndim > 1 else np.float32)
        values = dequantize(quantized.data, quantized.tensor_type)
        np.testing.assert_array_equal(tensor.data, values.astype(tensor.data.dtype))


def test_logits_are_nearly_those_of_the_quantized_model(half: Path) -> None:
    logits = []
    for path in (DRAFT, half):
        with edge.load(edge.plan(path, ram="1GiB", ctx=128)) as model:
            logits.append(model.verify(model.tokenize("Once upon a time"))[-1])
    assert np.corrcoef(logits[0], logits[1])[0, 1] > 0.99


def test_a_file_that_is_no_model_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert half_precision.main([str(tmp_path / "none.gguf"), str(tmp_path / "out.gguf")]) == 2
    assert "none.gguf" in capsys.readouterr().err
