"""Writing a model's weights as F16: what the same model is without quantization's speed.

    python -m haversack.tools.models.half_precision MODEL.gguf OUT.gguf

Vectors stay F32, as in published files. The values are those of MODEL, so a quantized MODEL becomes
no better by it. For comparing how machines compute both.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from haversack.devices.units import format_bytes
from haversack.tools.command_line import tool
from haversack.tools.models.gguf_stream import load_gguf_package

_MOSTLY_F16 = 1  # general.file_type
_OWN_FIELDS = ("GGUF.", "general.architecture", "general.file_type")  # the writer's


def write_half(model: Path, out: Path) -> None:
    """Write `model` to `out` with matrices in F16. Raises HaversackError without the gguf package,
    OSError."""
    gguf = load_gguf_package()
    reader = gguf.GGUFReader(model)
    writer = gguf.GGUFWriter(out, reader.fields["general.architecture"].contents())
    writer.add_file_type(_MOSTLY_F16)
    for name, field in reader.fields.items():
        if not name.startswith(_OWN_FIELDS):
            kind, *inner = field.types
            writer.add_key_value(name, field.contents(), kind, sub_type=inner[0] if inner else None)
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, values.astype(np.float16 if values.ndim > 1 else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@tool
def main(arguments: Sequence[str] | None) -> int:
    """Write the file of the command line; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args(arguments)
    write_half(given.model, given.out)
    print(f"{given.out}: {format_bytes(given.out.stat().st_size)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
