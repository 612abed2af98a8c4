"""Random models load in plain llama.cpp and compute; their files are what was asked for."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from haversack.devices.errors import HaversackError, ModelFileError
from haversack.devices.ggml import GgufHeader, TensorInfo, type_geometry
from haversack.devices.llama import ContextShape, LlamaContext
from haversack.devices.llama_model import LlamaModel
from haversack.quant.blocks import BLOCK_TYPES
from haversack.tools.models import gguf_stream, synth
from haversack.tools.models.architectures import ARCHITECTURES
from haversack.tools.models.synth import (
    LargeOptions,
    TinyLayout,
    TinyShape,
    write_large,
    write_tiny,
)

SMALL = TinyShape(num_hidden_layers=2, num_experts=4, vocab_size=64)
SLOW_TYPES = {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"}  # to quantise


def logits(path: Path, tokens: tuple[int, ...] = (1, 2, 3)) -> npt.NDArray[np.float32]:
    """Plain llama.cpp's logits after each of `tokens`, (T, vocabulary)."""
    model = LlamaModel(path)
    context = LlamaContext(model, ContextShape(ctx_tokens=64, batch_tokens=8, threads=1))
    rows: list[npt.NDArray[np.float32]] = []
    for token in tokens:
        context.decode([token])
        rows.append(context.logits())
    context.close()
    model.close()
    return np.stack(rows)


def check_computes(path: Path) -> None:
    rows = logits(path)
    assert np.isfinite(rows).all()
    assert (rows.std(axis=1) > 1e-3).all()
    assert (np.abs(np.diff(rows, axis=0)).max(axis=1) > 1e-3).all()


def tensors_of(*paths: Path) -> dict[str, TensorInfo]:
    found: dict[str, TensorInfo] = {}
    for path in paths:
        with GgufHeader(path) as header:
            found |= {tensor.name: tensor for tensor in header.tensors}
    return found


def type_name(tensor: TensorInfo) -> str:
    return type_geometry(tensor.type_id)[0].upper()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_computes(architecture: str, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    assert write_tiny(architecture, path) == [path]
    assert path.stat().st_size < 17e6
    check_computes(path)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_computes_with_all_its_optional_tensors(
    architecture: str, tmp_path: Path
) -> None:
    path = tmp_path / "tiny.gguf"
    write_tiny(architecture, path, shape=SMALL, layout=TinyLayout(all_optional=True))
    assert any(name.endswith(".scale") for name in tensors_of(path))
    check_computes(path)


@pytest.mark.parametrize("block_type", sorted(set(BLOCK_TYPES) - SLOW_TYPES))
def test_every_block_type_computes(block_type: str, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    layout = TinyLayout(trunk_type=block_type)
    write_tiny("qwen3moe", path, expert_type=block_type, shape=SMALL, layout=layout)
    tensors = tensors_of(path)
    for name in ("blk.1.ffn_down_exps.weight", "blk.0.attn_q.weight", "token_embd.weight"):
        assert type_name(tensors[name]) == block_type
    assert type_name(tensors["blk.0.ffn_gate_inp.weight"]) == "F32"
    check_computes(path)


def test_a_type_that_needs_an_importance_matrix(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    shape = TinyShape(2, num_experts=2, hidden_size=256, vocab_size=64)
    write_tiny("llama", path, expert_type="IQ2_XXS", shape=shape)
    check_computes(path)


def test_types_differ_between_layers_and_projections(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    layout = TinyLayout(down_type=("Q6_K", "Q4_K"))
    shape = TinyShape(num_hidden_layers=4, num_experts=4)
    write_tiny("llama", path, expert_type="Q4_K", shape=shape, layout=layout)
    tensors = tensors_of(path)
    down = [type_name(tensors[f"blk.{layer}.ffn_down_exps.weight"]) for layer in range(4)]
    gate = [type_name(tensors[f"blk.{layer}.ffn_gate_exps.weight"]) for layer in range(4)]
    assert down == ["Q6_K", "Q4_K", "Q6_K", "Q4_K"]
    assert gate == ["Q4_K"] * 4
    check_computes(path)


def test_experts_need_not_be_whole_pages(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    shape = TinyShape(2, num_experts=5, num_experts_per_tok=3, moe_intermediate_size=96)
    write_tiny("qwen3moe", path, expert_type="Q8_0", shape=shape)
    tensor = tensors_of(path)["blk.0.ffn_up_exps.weight"]
    assert tensor.shape == (256, 96, 5, 1)
    assert tensor.num_bytes // 5 == 26112  # 6.4 pages
    check_computes(path)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("architecture", [a for a in ARCHITECTURES if ARCHITECTURES[a].fusable])
def test_gate_and_up_apart_or_as_one(architecture: str, fused: bool, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_tiny(architecture, path, shape=SMALL, layout=TinyLayout(fused=fused))
    names = tensors_of(path)
    assert ("blk.1.ffn_gate_up_exps.weight" in names) == fused
    assert ("blk.1.ffn_gate_exps.weight" in names) != fused
    check_computes(path)


def test_apart_or_as_one_is_the_same_model(tmp_path: Path) -> None:
    paths = [tmp_path / "apart.gguf", tmp_path / "fused.gguf"]
    for path, fused in zip(paths, (False, True), strict=True):
        write_tiny("gemma4", path, shape=SMALL, layout=TinyLayout(fused=fused))
    np.testing.assert_allclose(logits(paths[0]), logits(paths[1]), atol=1e-4)


def test_gpt_oss_has_biases_sinks_and_mxfp4_experts(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_tiny("gpt-oss", path, shape=SMALL)
    tensors = tensors_of(path)
    assert type_name(tensors["blk.0.ffn_gate_exps.weight"]) == "MXFP4"
    assert {"blk.0.ffn_down_exps.bias", "blk.0.attn_sinks.weight"} <= set(tensors)


def test_split_files_are_the_same_model(tmp_path: Path) -> None:
    whole, split = tmp_path / "whole.gguf", tmp_path / "split.gguf"
    write_tiny("olmoe", whole, shape=SMALL)
    parts = write_tiny("olmoe", split, shape=SMALL, layout=TinyLayout(num_splits=3))
    assert [part.name for part in parts] == [f"split-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    assert set(tensors_of(*parts)) == set(tensors_of(whole))
    np.testing.assert_array_equal(logits(parts[0]), logits(whole))


def test_equal_arguments_give_equal_bytes(tmp_path: Path) -> None:
    contents: list[bytes] = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_tiny("llama", tmp_path / name, seed=seed, shape=SMALL)
        contents.append((tmp_path / name).read_bytes())
    assert contents[0] == contents[1] != contents[2]


@pytest.mark.parametrize("block_type", ["Q4_K", "Q8_0", "F16"])
def test_a_large_model_in_small(block_type: str, tmp_path: Path) -> None:
    options = LargeOptions(
        num_experts=16,
        num_experts_per_tok=4,
        hidden_size=2048,
        moe_intermediate_size=256,
        num_attention_heads=4,
        vocab_size=128,
        down_type="Q6_K",
    )
    parts = write_large(
        tmp_path / "big.gguf", layers=2, block_type=block_type, num_splits=2, options=options
    )
    tensors = tensors_of(*parts)
    experts = tensors["blk.1.ffn_gate_exps.weight"]
    assert type_name(tensors["blk.1.ffn_down_exps.weight"]) == "Q6_K"
    data = np.fromfile(parts[1], np.uint8, experts.num_bytes, offset=experts.offset)
    assert len({expert.tobytes() for expert in data.reshape(16, -1)}) == 16
    embedding = tensors["token_embd.weight"]
    rows = np.fromfile(parts[0], np.uint8, embedding.num_bytes, offset=embedding.offset)
    starts, ends = np.split(rows.reshape(128, 8, -1), [1], axis=1)
    assert len({start.tobytes() for start in starts}) == 1
    assert len({end.tobytes() for end in ends}) == 128
    check_computes(parts[0])


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    narrow = TinyShape(moe_intermediate_size=96)
    with pytest.raises(ModelFileError, match="96 elements are no whole number of Q4_K blocks"):
        write_tiny("llama", path, expert_type="Q4_K", shape=narrow)
    with pytest.raises(ModelFileError, match=r"Q8_K.*choose one of F32, F16"):
        write_tiny("llama", path, expert_type="Q8_K")
    with pytest.raises(ModelFileError, match="trunk"):
        write_tiny("llama", path, layout=TinyLayout(trunk_type="trunk"))
    with pytest.raises(ValueError, match="no fused"):
        write_tiny("llama", path, layout=TinyLayout(fused=True))
    with pytest.raises(ValueError, match="gpt-2"):
        write_tiny("gpt-2", path)
    with pytest.raises(ValueError, match="split"):
        write_tiny("llama", path, shape=SMALL, layout=TinyLayout(num_splits=1000))
    with pytest.raises(ValueError, match="num_experts_per_tok 9"):
        TinyShape(num_experts_per_tok=9)
    assert not path.exists()


def test_without_the_gguf_package_the_error_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(HaversackError, match="pip install gguf"):
        gguf_stream.load_gguf_package()


def test_the_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tiny.gguf"
    sizes = ["--layers", "2", "--num-experts", "4", "--vocab-size", "64"]
    types = ["--expert-type", "q4_k", "--down-type", "q6_k,q4_k", "--trunk-type", "q8_0"]
    assert synth.main(["tiny", "lfm2moe", str(path), *sizes, *types]) == 0
    assert "tiny.gguf" in capsys.readouterr().out
    assert type_name(tensors_of(path)["blk.1.ffn_down_exps.weight"]) == "Q4_K"
    assert synth.main(["tiny", "llama", str(path), "--expert-type", "q9"]) == 2
    assert '"Q9" is no block type' in capsys.readouterr().err


def test_the_program_writes_large_models(tmp_path: Path) -> None:
    path = tmp_path / "big.gguf"
    sizes = ["--layers", "1", "--num-experts", "8", "--hidden-size", "256", "--vocab-size", "64"]
    arguments = ["large", str(path), *sizes, "--block-type", "q5_k", "--splits", "2"]
    subprocess.run([sys.executable, "-m", "haversack.tools.models.synth", *arguments], check=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "big-00001-of-00002.gguf",
        "big-00002-of-00002.gguf",
    ]
