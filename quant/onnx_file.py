"""What an ONNX file takes and gives, and how many bytes its weights have, read from its protobuf.

Only the fields that tell this are followed: the lengths of all others are skipped, so that a file
of gigabytes costs a few pages. Numbers of fields are those of onnx.proto.
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from haversack.devices.errors import ModelFileError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_GRAPH = 7  # of a ModelProto
_INITIALIZER, _INPUT, _OUTPUT = 5, 11, 12  # of a GraphProto
_VALUE_NAME, _VALUE_TYPE = 1, 2  # of a ValueInfoProto
_TENSOR_TYPE = 1  # of a TypeProto
_ELEMENT, _SHAPE = 1, 2  # of a TypeProto.Tensor
_DIM, _DIM_VALUE = 1, 1  # of a TensorShapeProto, and of its dimensions
_TENSOR_NAME, _EXTERNAL_DATA = 8, 13  # of a TensorProto
_KEY, _VALUE = 1, 2  # of a StringStringEntryProto
_ENTRY_BYTES = 4096  # of a tensor with external data, at most: it has no values

FLOAT, INT64, FLOAT16 = 1, 7, 10  # enum TensorProto.DataType


@dataclass(frozen=True)
class OnnxValue:
    """An input or output: `element` is the number of its type, `dims` has 0 for each dimension
    that the file leaves open."""

    name: str
    element: int
    dims: tuple[int, ...]


@dataclass(frozen=True)
class OnnxFile:
    """What a file takes and gives. `weights_bytes` are those of the file and of the files with
    weights that it names, `largest_bytes` those of its largest weight."""

    path: Path
    inputs: tuple[OnnxValue, ...]
    outputs: tuple[OnnxValue, ...]
    weights_bytes: int
    largest_bytes: int


def read_onnx(path: Path) -> OnnxFile:
    """Return what the ONNX file at `path` takes and gives. Raises ModelFileError if it is none, or
    if a file that it names is missing."""
    try:
        with path.open("rb") as file:
            if not path.stat().st_size:
                raise IndexError
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _read(path, data)
    except OSError as error:
        raise ModelFileError(f"cannot read {path}: {error.strerror}; give an ONNX file") from error
    except (IndexError, UnicodeDecodeError) as error:
        raise ModelFileError(f"{path} is no ONNX file, or it is damaged: give another") from error


def _read(path: Path, data: mmap.mmap) -> OnnxFile:
    inputs, outputs, others = list[OnnxValue](), list[OnnxValue](), set[str]()
    initial, num_graphs, largest_bytes = set[str](), 0, 0
    for number, place in _fields(data, slice(0, len(data))):
        if number != _GRAPH:
            continue
        num_graphs += 1
        for kind, part in _fields(data, place):
            if kind == _INITIALIZER:
                name, other, num_bytes = _tensor(data, part)
                initial.add(name)
                others |= other
                largest_bytes = max(largest_bytes, num_bytes)
            elif kind in (_INPUT, _OUTPUT):
                (inputs if kind == _INPUT else outputs).append(_value(data, part))
    if num_graphs != 1:
        raise IndexError
    inputs = [each for each in inputs if each.name not in initial]  # old files list weights too
    num_bytes = len(data) + sum(_size(path, path.parent / other) for other in others)
    return OnnxFile(path, tuple(inputs), tuple(outputs), num_bytes, largest_bytes)


def _size(path: Path, other: Path) -> int:
    if not other.is_file():
        raise ModelFileError(
            f"{path.name} has weights in {other.name}, which is not there: put it into"
            f" {path.parent}"
        )
    return other.stat().st_size


def _fields(data: mmap.mmap, place: slice) -> Iterator[tuple[int, slice]]:
    """Yield the number of each field between two places and where its bytes are; those of a number
    too. Raises IndexError where there is no field."""
    at = place.start
    while at < place.stop:
        tag, at = _varint(data, at)
        kind, begin = tag & 7, at
        if kind == _VARINT:
            _, at = _varint(data, at)
        elif kind == _BYTES:
            length, begin = _varint(data, at)
            at = begin + length
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            raise IndexError
        if at > place.stop or tag < 8:
            raise IndexError
        yield tag >> 3, slice(begin, at)


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
    raise IndexError


def _value(data: mmap.mmap, place: slice) -> OnnxValue:
    name, element, dims = "", 0, list[int]()
    for number, part in _fields(data, place):
        if number == _VALUE_NAME:
            name = data[part].decode()
        elif number == _VALUE_TYPE:
            for kind, tensor in _fields(data, part):
                if kind == _TENSOR_TYPE:
                    element, dims = _tensor_type(data, tensor)
    return OnnxValue(name, element, tuple(dims))


def _tensor_type(data: mmap.mmap, place: slice) -> tuple[int, list[int]]:
    element, dims = 0, list[int]()
    for number, part in _fields(data, place):
        if number == _ELEMENT:
            element = _varint(data, part.start)[0]
        elif number == _SHAPE:
            dims = [_dim(data, dim) for kind, dim in _fields(data, part) if kind == _DIM]
    return element, dims


def _dim(data: mmap.mmap, place: slice) -> int:
    known = [part for number, part in _fields(data, place) if number == _DIM_VALUE]
    # a name is a field of another number, a known length a number
    return _varint(data, known[0].start)[0] if known else 0


def _tensor(data: mmap.mmap, place: slice) -> tuple[str, set[str], int]:
    """Return the name of a weight, the files that it lies in beside this one, and its bytes."""
    name, others, num_bytes = "", set[str](), place.stop - place.start
    for number, part in _fields(data, place):
        if number == _TENSOR_NAME:
            name = data[part].decode()
        elif number == _EXTERNAL_DATA and part.stop - part.start <= _ENTRY_BYTES:
            entry = {kind: data[piece].decode() for kind, piece in _fields(data, part)}
            if entry.get(_KEY) == "location":
                others.add(entry.get(_VALUE, ""))
            elif entry.get(_KEY) == "length" and entry.get(_VALUE, "").isdecimal():
                num_bytes = int(entry[_VALUE])
    return name, others, num_bytes
