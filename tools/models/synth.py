"""Random MoE models: tiny ones of any architecture for tests, large ones for speed.

python -m haversack.tools.models.synth tiny qwen3moe tiny.gguf --expert-type Q4_K --down-type Q6_K
python -m haversack.tools.models.synth large big.gguf --layers 24 --block-type Q4_K --splits 3
"""

import argparse
import re
import sys
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.devices.ggml import GgufHeader
from haversack.devices.units import format_bytes
from haversack.tools.command_line import positive, tool
from haversack.tools.models.architectures import (
    ARCHITECTURES,
    Architecture,
    TinyShape,
    architecture_named,
    tiny_metadata,
)
from haversack.tools.models.authoring import block_geometry, quantize_rows, random_model
from haversack.tools.models.gguf_stream import TensorPlan, Types, type_of_layer, write_gguf
from haversack.tools.models.synth_large import LargeOptions, write_large

__all__ = ["LargeOptions", "TinyLayout", "TinyShape", "main", "write_large", "write_tiny"]

Tensors = dict[str, npt.NDArray[np.float32]]

_EXPERTS = re.compile(r"blk\.(\d+)\.ffn_(gate_up|gate|up|down)_exps\.weight")
_ALWAYS_F32 = re.compile(r"norm|ffn_gate_inp|conv1d|conv\.weight|ssm_a$|rope_f|sinks|\.bias$|scale")
_OPTIONAL = re.compile(r"\.(bias|scale|input_scale)$|(rope_freqs|ssm_in)\.weight$")


@dataclass(frozen=True)
class TinyLayout:
    """How a tiny model is stored.

    `down_type` is the block type of the down projections (None: that of the other expert weights);
    a tuple of types is repeated over the layers. `trunk_type` is that of every other matrix, or F16
    where a row is no whole number of blocks. `fused` stores gate and up as one tensor (None: as
    published files do). `all_optional` writes every optional tensor that llama.cpp takes.
    """

    down_type: Types | None = None
    trunk_type: str = "F16"
    fused: bool | None = None
    all_optional: bool = False
    num_splits: int = 1


def write_tiny(
    architecture: str,
    path: Path,
    *,
    seed: int = 0,
    expert_type: Types | None = None,
    shape: TinyShape | None = None,
    layout: TinyLayout | None = None,
) -> list[Path]:
    """Write a random model of the architecture, 11 MB by default; return its files, the one to load
    first.

    `expert_type` None means the type of published files: F16, or MXFP4 for gpt-oss; a tuple of
    types is repeated over the layers. Equal arguments give equal bytes. Raises ValueError or
    ModelFileError for sizes, types and names that do not go together.
    """
    entry, layout = architecture_named(architecture), layout or TinyLayout()
    metadata = tiny_metadata(architecture, shape or TinyShape())
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "float32.gguf"
        random_model(metadata, partial(random_values, seed), source)
        tensors = _read_tensors(source)
    tensors = _stored_tensors(tensors, entry, layout)
    expert_types = expert_type or entry.expert_type
    plans = [
        TensorPlan(name, data.shape, _block_type(name, data, expert_types, layout))
        for name, data in tensors.items()
    ]

    def chunks(plan: TensorPlan) -> Iterator[npt.NDArray[Any]]:
        yield quantize_rows(tensors[plan.name], plan.block_type)

    return write_gguf(path, metadata, plans, chunks, num_splits=layout.num_splits)


def random_values(seed: int, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Return random values: norms and scales near one, matrices scaled by their row length."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    x = rng.standard_normal(shape, np.float32)
    if "rope_f" in name:
        return np.ones(shape, np.float32)
    if name.endswith("scale") or ("norm" in name and name.endswith("weight")):
        return 1 + 0.05 * x
    if name.endswith("ssm_a"):  # a decay is negative
        return -np.abs(x) - np.float32(0.1)
    if "token_embd" in name:
        return x
    return x * np.float32(0.3 if "ffn_gate_inp" in name else 1.5 / np.sqrt(shape[-1]))


def _read_tensors(path: Path) -> Tensors:
    with GgufHeader(path) as header:
        return {
            tensor.name: np.fromfile(
                path, np.float32, tensor.num_bytes // 4, offset=tensor.offset
            ).reshape(_short_shape(tensor.shape))
            for tensor in header.tensors
        }


def _short_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """GGUF's fastest axis first, filled up with ones, to NumPy's slowest axis first."""
    num_axes = max((axis + 1 for axis, length in enumerate(shape) if length > 1), default=1)
    return shape[:num_axes][::-1]


def _stored_tensors(tensors: Tensors, entry: Architecture, layout: TinyLayout) -> Tensors:
    fused = entry.fused if layout.fused is None else layout.fused
    if fused and not entry.fusable:
        raise ValueError("llama.cpp takes no fused gate and up experts of this architecture")
    stored: Tensors = {}
    for name, data in tensors.items():
        if _OPTIONAL.search(name) and not (layout.all_optional or name.endswith(entry.optional)):
            continue
        if "ffn_gate_up_exps" in name and not fused:
            gate, up = np.split(data, 2, axis=-2)
            stored[name.replace("gate_up", "gate")] = gate
            stored[name.replace("gate_up", "up")] = up
        else:
            stored[name] = data
    return stored


def _block_type(
    name: str, data: npt.NDArray[np.float32], expert_types: Types, layout: TinyLayout
) -> str:
    match = _EXPERTS.fullmatch(name)
    if match:
        if match[2] == "down" and layout.down_type is not None:
            expert_types = layout.down_type
        return type_of_layer(expert_types, int(match[1]))
    if data.ndim < 2 or _ALWAYS_F32.search(name):
        return "F32"
    block_elements, _ = block_geometry(layout.trunk_type)
    return "F16" if data.shape[-1] % block_elements else layout.trunk_type


def _types(text: str) -> Types:
    types = tuple(text.upper().split(","))
    return types[0] if len(types) == 1 else types


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    tiny = kinds.add_parser("tiny", help="a small model of any architecture")
    tiny.add_argument("architecture", choices=sorted(ARCHITECTURES))
    tiny.add_argument("--expert-type", type=_types, help="block type, or one per layer: Q6_K,Q4_K")
    tiny.add_argument("--trunk-type", type=str.upper, default=TinyLayout.trunk_type)
    tiny.add_argument("--fused", action=argparse.BooleanOptionalAction)
    tiny.add_argument("--all-optional", action="store_true")
    _add_common(tiny, TinyShape())
    large = kinds.add_parser("large", help="a model of the shape of Qwen3-30B-A3B")
    large.add_argument("--layers", type=positive, default=24)
    large.add_argument("--block-type", type=str.upper, default="Q4_K")
    _add_common(large, LargeOptions())
    return parser


def _add_common(parser: argparse.ArgumentParser, sizes: TinyShape | LargeOptions) -> None:
    parser.add_argument("path", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--splits", type=positive, default=1, help="number of files")
    parser.add_argument("--down-type", type=_types, help="of the down projections, if another")
    for name, value in vars(sizes).items():
        if isinstance(value, int):
            flag = {"num_hidden_layers": "--layers"}.get(name, "--" + name.replace("_", "-"))
            parser.add_argument(flag, dest=name, type=int, default=value)


def _write(given: argparse.Namespace) -> list[Path]:
    options = vars(given)
    if given.kind == "large":
        sizes = {field.name: options[field.name] for field in fields(LargeOptions)}
        return write_large(
            given.path,
            layers=given.layers,
            block_type=given.block_type,
            seed=given.seed,
            num_splits=given.splits,
            options=LargeOptions(**sizes),
        )
    layout = TinyLayout(
        given.down_type, given.trunk_type, given.fused, given.all_optional, given.splits
    )
    return write_tiny(
        given.architecture,
        given.path,
        seed=given.seed,
        expert_type=given.expert_type,
        shape=TinyShape(**{field.name: options[field.name] for field in fields(TinyShape)}),
        layout=layout,
    )


@tool
def main(arguments: Sequence[str] | None) -> int:
    """Write the model that the command line describes; the exit status."""
    given = _parser().parse_args(arguments)
    for path in _write(given):
        print(f"{path}  {format_bytes(path.stat().st_size)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
