"""The weights of a decoder like Llama's, read from a GGUF as floats.

The layers of these architectures are computed alike: RMSNorm, attention with rotated positions and
groups of heads, RMSNorm, SwiGLU. Heads may have norms (qwen3) and biases (qwen2) of their own.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from haversack.devices.conversion import to_floats
from haversack.devices.errors import ModelFileError
from haversack.devices.ggml import GgufHeader, TensorInfo

Floats = npt.NDArray[np.float32]

_PAIRED = ("llama",)  # rotate elements 2 i and 2 i + 1 of a head; the others i and i + D / 2
ARCHITECTURES = (*_PAIRED, "qwen2", "qwen3")
_KNOWN = re.compile(
    r"(token_embd|output|output_norm)\.weight|blk\.\d+\.(attn_[qkv]\.bias|"
    r"(attn_norm|attn_[qk]_norm|ffn_norm|attn_(q|k|v|output)|ffn_(gate|up|down))\.weight)"
)
_ROTATED = ("attn_q.weight", "attn_k.weight", "attn_q.bias", "attn_k.bias")


@dataclass(frozen=True)
class DecoderFile:
    """The sizes of a decoder, and where its file has its tensors."""

    path: Path
    architecture: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rope_theta: float
    rms_norm_eps: float
    ctx_tokens: int
    tensors: Mapping[str, TensorInfo]

    @property
    def is_paired(self) -> bool:
        """Return whether neighbours of a head are rotated together in the file's order."""
        return self.architecture in _PAIRED

    @property
    def num_elements(self) -> int:
        """Return how many weights it has."""
        return sum(int(np.prod(each.shape)) for each in self.tensors.values())

    def weights(self) -> Iterator[tuple[str, Floats]]:
        """Yield the name of each tensor and its values, float32, slowest axis first. Rows of
        queries and keys come in the order in which elements i and i + D / 2 are rotated together.
        Raises OSError."""
        with self.path.open("rb") as file:
            for name, tensor in self.tensors.items():
                file.seek(tensor.offset)
                blocks = np.frombuffer(file.read(tensor.num_bytes), np.uint8)
                num_rows = int(np.prod(tensor.shape[1:]))
                values = to_floats(blocks.reshape(num_rows, -1), tensor.type_id)
                values = values if num_rows > 1 else values[0]
                yield name, self.halved(name, values)

    def halved(self, name: str, values: Floats) -> Floats:
        """Return the rows of a tensor in the order of halves, see `weights`."""
        return self._reordered(name, values, (self.head_dim // 2, 2))

    def paired(self, name: str, values: Floats) -> Floats:
        """Return the rows of a tensor in the file's order."""
        return self._reordered(name, values, (2, self.head_dim // 2))

    def _reordered(self, name: str, values: Floats, sides: tuple[int, int]) -> Floats:
        if not self.is_paired or not name.endswith(_ROTATED):
            return values
        heads = values.reshape(-1, *sides, *values.shape[1:])
        return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(values.shape)


def read_decoder(path: Path) -> DecoderFile:
    """Return what the GGUF at `path` holds. Raises ModelFileError for an architecture that is not
    one of `ARCHITECTURES`, for positions that are scaled, and for tensors that others lack."""
    with GgufHeader(path) as header:
        architecture = str(header.value("general.architecture"))
        tensors = {each.name: each for each in header.tensors}
        scaling = header.value(f"{architecture}.rope.scaling.type")
        other = next((name for name in tensors if not _KNOWN.fullmatch(name)), None)
        has_scaling = scaling not in (None, "none")
        if architecture not in ARCHITECTURES or has_scaling or other is not None:
            what = "scales its positions" if has_scaling else f"is {architecture}"
            if architecture in ARCHITECTURES and other is not None:
                what = f"has {other}"
            raise ModelFileError(
                f"{path.name} {what}: only {', '.join(ARCHITECTURES)} without that can learn or be"
                " written as ONNX; give another drafter, or leave out +learn"
            )

        def number(key: str, default: float = 0) -> float:
            value = header.value(f"{architecture}.{key}")
            return value if isinstance(value, int | float) else default

        hidden, heads = int(number("embedding_length")), int(number("attention.head_count"))
        return DecoderFile(
            path,
            architecture,
            num_layers=int(number("block_count")),
            hidden_size=hidden,
            num_heads=heads,
            num_kv_heads=int(number("attention.head_count_kv", heads)),
            head_dim=int(number("attention.key_length", hidden // max(1, heads))),
            intermediate_size=int(number("feed_forward_length")),
            rope_theta=number("rope.freq_base", 10000.0),
            rms_norm_eps=number("attention.layer_norm_rms_epsilon"),
            ctx_tokens=int(number("context_length")),
            tensors=tensors,
        )
