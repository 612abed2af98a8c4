"""Exported files: llama.cpp's logits are torch's, within what the format loses."""

from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from haversack.devices.errors import ModelFileError
from haversack.devices.ggml import GgufHeader
from haversack.edge.plain_llama import PlainLlama
from haversack.tools.training import export
from haversack.tools.training.decoder import Decoder, DecoderShape
from haversack.tools.training.export import FORMATS, block_type, export_gguf, load_gguf
from haversack.tools.training.vocabulary import Vocabulary

SHAPES = {
    "mixture": DecoderShape(vocab_size=300, num_hidden_layers=2, num_experts=8),
    "dense": DecoderShape(vocab_size=300, num_hidden_layers=2, num_experts=0),
}
IDS = [int(i) for i in np.random.RandomState(0).randint(3, 300, 40)]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.train([(Path(__file__).parents[3] / "README.md").read_text()], 300)


def model_of(kind: str) -> Decoder:
    """A random model with vocabulary 300 whose layers matter."""
    model = Decoder(SHAPES[kind], seed=4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.ndim > 1 else 1)
    return model


@torch.no_grad()
def torch_logits(model: Decoder) -> npt.NDArray[np.float32]:
    logits: npt.NDArray[np.float32] = model(torch.tensor([IDS]))[0].numpy()
    return logits


def distance(found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("format", FORMATS)
def test_llama_cpp_computes_what_torch_does(
    kind: str, format: str, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    """With the weights that the file holds the two agree; both round activations their own way."""
    path = tmp_path / "model.gguf"
    export_gguf(model_of(kind), vocabulary, path, format)
    stored, _ = load_gguf(path)
    expected = torch_logits(stored)[19:]
    with PlainLlama(path, 64, 1) as plain:
        found = plain.logits(IDS, 20)
    assert distance(found, expected) < (0.005 if format == "F16" else 0.1)


@pytest.mark.parametrize(("format", "bound"), [("F16", 5e-4), ("Q8_0", 0.01), ("Q6_K", 0.03)])
def test_a_file_holds_the_model_within_its_formats_error(
    format: str, bound: float, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    """`bound` is the format's error of a weight; two layers amplify it a few times."""
    path, model = tmp_path / "model.gguf", model_of("dense")
    export_gguf(model, vocabulary, path, format)
    stored, _ = load_gguf(path)
    assert replace(stored.shape, rms_norm_eps=1e-6) == SHAPES["dense"]  # a float32 there
    name = "blk.1.ffn_down.weight"
    lost = distance(export.gguf_tensors(stored)[name], export.gguf_tensors(model)[name])
    assert 0 < lost < bound
    assert distance(torch_logits(stored), torch_logits(model)) < 8 * lost


def test_equal_weights_give_equal_bytes(vocabulary: Vocabulary, tmp_path: Path) -> None:
    first, again = tmp_path / "first.gguf", tmp_path / "again.gguf"
    for path in (first, again):
        export_gguf(model_of("mixture"), vocabulary, path, "Q4_K_M")
    assert first.read_bytes() == again.read_bytes()


def test_four_bits_and_six_where_they_pay() -> None:
    assert block_type("output.weight", 8, "Q4_K_M") == "Q6_K"
    assert block_type("token_embd.weight", 8, "Q4_K_M") == "Q4_K"
    precise = [
        layer
        for layer in range(8)
        if block_type(f"blk.{layer}.ffn_down_exps.weight", 8, "Q4_K_M") == "Q6_K"
    ]
    assert precise == [0, 3, 6, 7]
    assert block_type("blk.0.ffn_gate_exps.weight", 8, "Q4_K_M") == "Q4_K"
    for name in ("blk.1.attn_q_norm.weight", "blk.1.ffn_gate_inp.weight"):
        assert {block_type(name, 8, format) for format in FORMATS} == {"F32"}


def test_the_file_says_what_it_is(vocabulary: Vocabulary, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    export_gguf(model_of("mixture"), vocabulary, path, "Q8_0")
    with GgufHeader(path) as header:
        assert header.value("general.architecture") == "qwen3moe"
        assert header.value("general.license") == "cc-by-sa-4.0"
        assert header.value("general.file_type") == FORMATS["Q8_0"]
        assert header.value("qwen3moe.expert_used_count") == 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*treespec.*")
def test_onnx_computes_what_torch_does(
    vocabulary: Vocabulary, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_gguf(model_of("dense"), vocabulary, tmp_path / "twin.gguf", "F16")
    path = tmp_path / "twin.onnx"
    assert export.main([str(tmp_path / "twin.gguf"), str(path)]) == 0
    session = import_module("onnxruntime").InferenceSession(str(path))
    stored, _ = load_gguf(tmp_path / "twin.gguf")
    (logits,) = session.run(["logits"], {"tokens": np.array([IDS])})
    assert distance(logits[0], torch_logits(stored)) < 1e-4
    (other,) = session.run(["logits"], {"tokens": np.array([IDS[:7]] * 3)})  # other B and T
    assert distance(other[1], torch_logits(stored)[:7]) < 1e-4


def test_what_cannot_be_written_is_said(
    vocabulary: Vocabulary, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ModelFileError, match='"Q5_9" is no format: choose one of F16'):
        export_gguf(model_of("dense"), vocabulary, tmp_path / "model.gguf", "Q5_9")
    with pytest.raises(ModelFileError, match="give a dense model"):
        export.export_onnx(model_of("mixture"), tmp_path / "model.onnx")
    assert export.main([str(tmp_path), str(tmp_path / "model.gguf")]) == 2
    assert "has no checkpoint.pt: give the folder of a training run" in capsys.readouterr().err
    assert export.main([str(tmp_path / "no.gguf"), str(tmp_path / "model.gguf")]) == 2
    assert "no.gguf does not exist" in capsys.readouterr().err


def test_another_architecture_is_refused(known_answer_model: Path) -> None:
    with pytest.raises(ModelFileError, match=r"is llama: give a file of tools\.training\.export"):
        load_gguf(known_answer_model)
