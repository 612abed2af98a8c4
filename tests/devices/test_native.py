"""The binding knows one build of llama.cpp and refuses others. Its structures match C's."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from haversack.devices import _native as native

SOURCE = Path(native.__file__).read_text(encoding="utf-8")


def refusal(preparation: str) -> str:
    """Return the output of importing the binding in a new process, after lines that change it."""
    program = f"""
import llama_cpp
from pathlib import Path
from haversack.devices.errors import BindingError
source = Path({native.__file__!r}).read_text()
{preparation}
try:
    exec(compile(source, "_native.py", "exec"), {{"__name__": "binding"}})
except BindingError as error:
    assert isinstance(error, ImportError)
    print(error)
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_known_build_is_taken() -> None:
    assert refusal("pass") == ""


@pytest.mark.parametrize("found", ["0.3.35", "0.3.37", "0.4.0"])
def test_another_version_is_refused(found: str) -> None:
    message = refusal(f"llama_cpp.__version__ = {found!r}")
    assert message == (
        f"found llama-cpp-python {found} with ggml 0.25.3 and tensors of 336 bytes,"
        " need 0.3.36, 0.25.3 and 336: `pip install llama-cpp-python==0.3.36`"
    )


@pytest.mark.parametrize(
    ("ours", "other"), [('GGML = "0.25.3"', 'GGML = "0.25.4"'), ("_BYTES = 336", "_BYTES = 344")]
)
def test_another_ggml_and_other_structures_are_refused(ours: str, other: str) -> None:
    """Changes the binding as if it was written for another build than the installed one."""
    assert ours in SOURCE
    message = refusal(f"source = source.replace({ours!r}, {other!r})")
    assert message.startswith("found llama-cpp-python 0.3.36 with ggml 0.25.3 and tensors of 336")
    assert other.split()[-1].strip('"') in message


def test_a_library_that_is_not_there() -> None:
    message = refusal("import llama_cpp; llama_cpp.__file__ = '/nowhere/llama_cpp/__init__.py'")
    assert message.startswith("cannot load /nowhere/llama_cpp/lib/libggml-base")
    assert "pip install --force-reinstall llama-cpp-python==0.3.36" in message


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
def test_each_library_is_loaded_once() -> None:
    """A library is installed under several names, and a second copy would have its own state."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    files = {Path(line.split()[-1]) for line in lines if "/llama_cpp/lib/" in line}
    stems = sorted(file.name.split(".")[0] for file in files)
    assert len(stems) == len(set(stems))
    assert {"libggml-base", "libggml-cpu", "libllama"} <= set(stems)


def test_a_tensor_is_read_as_c_wrote_it() -> None:
    memory = np.zeros(1 << 16, np.uint8)
    context = native.ggml_init(native.GgmlInitParams(len(memory), native.address_of(memory), True))
    q8_0, f32, i32 = 8, 0, 26
    weights = native.ggml_new_tensor_3d(context, q8_0, 64, 5, 3)
    rows = native.ggml_new_tensor_3d(context, f32, 64, 1, 7)
    ids = native.ggml_new_tensor_3d(context, i32, 2, 7, 1)
    node = native.ggml_mul_mat_id(context, weights, rows, ids)
    tensor = native.Tensor.from_address(weights)
    assert tensor.type == q8_0
    assert list(tensor.ne) == [64, 5, 3, 1]
    assert list(tensor.nb) == [34, 2 * 34, 5 * 2 * 34, 3 * 5 * 2 * 34]
    assert not tensor.data
    product = native.Tensor.from_address(node)
    assert native.ggml_op_name(product.op) == b"MUL_MAT_ID"
    assert list(product.src)[:4] == [weights, rows, ids, None]
    assert list(product.ne) == [5, 2, 7, 1]
    assert product.name == b""
    native.ggml_free(context)


def test_memory_by_its_address() -> None:
    source = np.arange(12, dtype=np.int32)
    view = native.array_at(native.address_of(source), (3, 4), np.int32)
    assert view.tolist() == source.reshape(3, 4).tolist()
    view[2, 3] = 99
    assert source[11] == 99
    target = np.zeros(12, np.int32)
    native.move_bytes(native.address_of(target) + 4, native.address_of(source), 8)
    assert target.tolist() == [0, 0, 1] + [0] * 9
    assert bytes(native.memory[native.address_of(source) + 4 :][:4]) == b"\1\0\0\0"
    assert len(native.memory) == sys.maxsize  # some 64-bit machines use 48 bits, some use 52
