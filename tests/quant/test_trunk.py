"""The trunk file: its content, when it is written, and what remains if writing fails."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter

from haversack.devices.errors import StorageError
from haversack.devices.ggml import GgufHeader, GraphNode
from haversack.devices.llama_model import LlamaModel
from haversack.offload.expert_buffer import ExpertBuffer
from haversack.quant import trunk as trunk_module
from haversack.quant.gguf import EXPERT_PATTERN, ModelGeometry, read_geometry
from haversack.quant.seal import is_whole
from haversack.quant.trunk import (
    ensure_trunk,
    hole_names,
    list_lone_ngrams,
    list_trunks,
    ngrams_path,
    remove_trunks,
    resident_path,
    rewrite_trunk,
)
from haversack.tools.models.synth import TinyLayout, TinyShape, write_tiny

SMALL = TinyShape(num_hidden_layers=3, num_experts=4, vocab_size=64)
ODD = TinyShape(2, num_experts=5, num_experts_per_tok=3, hidden_size=128, moe_intermediate_size=96)
SPLIT_KEYS = {"split.no", "split.count", "split.tensors.count"}
NAME = re.compile(r"[0-9a-f]{12}-[0-9a-f]{20}\.gguf")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a cache folder that does not exist yet."""
    return tmp_path / "cache" / "trunks"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny("qwen3moe", tmp_path / "model.gguf", shape=ODD)[0]


def names(folder: Path) -> set[str]:
    """Return the files in a cache folder without its lock."""
    return {path.name for path in folder.iterdir()} - {"lock"}


def trunk_tensors(path: Path) -> dict[str, bytes]:
    """Return all tensors but the routed experts, as bytes."""
    with GgufHeader(path) as header, path.open("rb") as file:
        return {
            tensor.name: os.pread(file.fileno(), tensor.num_bytes, tensor.offset)
            for tensor in header.tensors
            if not re.search(EXPERT_PATTERN, tensor.name)
        }


def key_values(path: Path) -> dict[str, Any]:
    fields = GGUFReader(path).fields
    return {name: f.contents() for name, f in fields.items() if not name.startswith("GGUF.")}


def check_loads(trunk: Path, geometry: ModelGeometry) -> None:
    """llama.cpp loads it as the model itself, and gives every expert tensor."""
    experts = ExpertBuffer(EXPERT_PATTERN)
    loaded = LlamaModel(trunk, experts=experts)
    matrices = [matrix for layer in geometry.layers for matrix in layer.matrices]
    weights = experts.weights()
    assert set(weights) == {matrix.name for matrix in matrices}
    for matrix in matrices:
        shape = (matrix.row_elements, matrix.num_rows, matrix.num_experts, 1)
        assert GraphNode(weights[matrix.name]).shape == shape
    loaded.close()
    experts.close()


# -------------------------------------------------------------------- content
@pytest.mark.parametrize(
    "architecture", ["qwen3moe", "deepseek2", "gpt-oss", "gemma4", "lfm2moe", "qwen35moe"]
)
def test_it_is_the_model_without_its_experts(
    architecture: str, tmp_path: Path, folder: Path
) -> None:
    (model,) = write_tiny(architecture, tmp_path / "model.gguf", shape=SMALL)
    geometry = read_geometry(model)
    trunk = ensure_trunk(geometry, folder)
    assert trunk.parent == folder
    assert NAME.fullmatch(trunk.name)
    assert key_values(trunk) == key_values(model)
    assert trunk_tensors(trunk) == trunk_tensors(model)
    check_loads(trunk, geometry)


def test_types_and_rows_of_any_kind(tmp_path: Path, folder: Path) -> None:
    for types in ("Q8_0", "F32", "MXFP4"):  # rows of 96 and 128 elements
        (model,) = write_tiny("olmoe", tmp_path / "model.gguf", expert_type=types, shape=ODD)
        geometry = read_geometry(model)
        trunk = ensure_trunk(geometry, folder)
        assert trunk_tensors(trunk) == trunk_tensors(model)
        check_loads(trunk, geometry)


def test_parts_become_one_file(tmp_path: Path, folder: Path) -> None:
    (whole,) = write_tiny("qwen3moe", tmp_path / "whole.gguf", shape=SMALL)
    layout = TinyLayout(num_splits=3)
    parts = write_tiny("qwen3moe", tmp_path / "split.gguf", shape=SMALL, layout=layout)
    geometry = read_geometry(parts[2])
    trunk = ensure_trunk(geometry, folder)
    assert SPLIT_KEYS <= set(key_values(parts[0]))
    assert key_values(trunk) == key_values(whole)
    assert trunk_tensors(trunk) == trunk_tensors(whole)
    check_loads(trunk, geometry)
    assert ensure_trunk(read_geometry(parts[0]), folder) == trunk


def test_experts_are_holes_that_take_no_disk(tmp_path: Path, folder: Path) -> None:
    shape = TinyShape(num_hidden_layers=2, num_experts=16, vocab_size=64)
    (model,) = write_tiny("qwen3moe", tmp_path / "model.gguf", shape=shape)
    geometry = read_geometry(model)
    trunk = ensure_trunk(geometry, folder)
    with GgufHeader(trunk) as header:
        holes = [t for t in header.tensors if re.search(EXPERT_PATTERN, t.name)]
        data = trunk.read_bytes()
        for hole in holes:
            assert not any(data[hole.offset : hole.offset + hole.num_bytes])
    holes_bytes = sum(hole.num_bytes for hole in holes)
    assert holes_bytes > 800_000
    status = trunk.stat()
    partly_filled_bytes = 2 * 4096 * len(holes)  # the pages at both ends of a hole
    assert status.st_blocks * 512 <= status.st_size - holes_bytes + partly_filled_bytes + 4096
    assert list_trunks(folder)[0].disk_bytes == status.st_blocks * 512


def test_a_file_that_ends_in_a_hole_has_its_full_length(tmp_path: Path, folder: Path) -> None:
    writer = GGUFWriter(tmp_path / "model.gguf", "tiny")
    writer.add_custom_alignment(64)
    writer.add_uint32("tiny.expert_count", 4)
    writer.add_uint32("tiny.expert_used_count", 2)
    rng = np.random.default_rng(0)
    for name, shape in (("output.weight", (3, 5)), ("blk.0.ffn_up_exps.weight", (4, 2, 32))):
        writer.add_tensor(name, rng.standard_normal(shape, np.float32))
    finish(writer)
    model = tmp_path / "model.gguf"
    trunk = ensure_trunk(read_geometry(model), folder)
    (layer,) = read_geometry(trunk).layers  # refuses what is truncated
    assert (layer.num_experts, layer.matrices[0].row_elements) == (4, 32)
    assert trunk_tensors(trunk) == trunk_tensors(model)
    assert "general.alignment" not in key_values(trunk)  # our holes start anywhere


def test_layers_that_only_draft_are_no_more_than_holes(tmp_path: Path, folder: Path) -> None:
    """llama.cpp leaves such a layer out, but needs its tensors in the file."""
    (source,) = write_tiny("glm4moe", tmp_path / "source.gguf", shape=SMALL)
    model = with_a_drafting_layer(source, tmp_path / "model.gguf")
    geometry = read_geometry(model)
    assert [layer.layer for layer in geometry.layers] == [1]
    assert len(geometry.unused) == 3
    trunk = ensure_trunk(geometry, folder)
    assert trunk_tensors(trunk) == trunk_tensors(model)
    check_loads(trunk, geometry)
    assert read_geometry(trunk).unused != ()  # refuses what is truncated


def with_a_drafting_layer(source: Path, path: Path) -> Path:
    """Return the model at `source` with its last layer made a layer that drafts."""
    reader = GGUFReader(source)
    writer = GGUFWriter(path, "glm4moe")
    for name, value in key_values(source).items():
        if isinstance(value, float):
            writer.add_float32(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif name != "general.architecture":
            writer.add_string(name, value)
    writer.add_uint32("glm4moe.nextn_predict_layers", 1)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    for name, shape in (("eh_proj", (256, 512)), ("enorm", (256,)), ("hnorm", (256,))):
        writer.add_tensor(f"blk.2.nextn.{name}.weight", np.ones(shape, np.float32))
    finish(writer)
    return path


def finish(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_large_tensors_are_copied_piece_by_piece(
    model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trunk_module, "_CHUNK_BYTES", 1000)
    shares: list[float] = []
    trunk = ensure_trunk(read_geometry(model), folder, shares.append)
    assert trunk_tensors(trunk) == trunk_tensors(model)
    assert len(shares) > 100
    assert shares == sorted(shares)
    assert 0 < shares[0] < 0.1 and 0.98 < shares[-1] <= 1


# ------------------------------------------------------- when it is written
def test_a_second_call_finds_it(model: Path, folder: Path) -> None:
    trunk = ensure_trunk(read_geometry(model), folder)
    before = trunk.stat()

    def progress(_: float) -> None:
        pytest.fail("it was written again")

    assert ensure_trunk(read_geometry(model), folder, progress) == trunk
    assert trunk.stat() == before


def test_a_changed_model_gets_a_new_one_and_the_old_one_goes(model: Path, folder: Path) -> None:
    first = ensure_trunk(read_geometry(model), folder)
    status = model.stat()
    os.utime(model, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    second = ensure_trunk(read_geometry(model), folder)
    write_tiny("qwen3moe", model, seed=1, shape=ODD)
    third = ensure_trunk(read_geometry(model), folder)
    assert len({first, second, third}) == 3
    assert names(folder) == {third.name, third.stem + ".json"}
    assert trunk_tensors(third) == trunk_tensors(model)


def test_only_its_header_tells_a_model_of_the_same_size_and_time(model: Path, folder: Path) -> None:
    first = ensure_trunk(read_geometry(model), folder)
    status, data = model.stat(), model.read_bytes()
    model.write_bytes(data.replace(b"tiny random", b"TINY random"))
    os.utime(model, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert ensure_trunk(read_geometry(model), folder) != first


def test_each_model_keeps_its_own(model: Path, folder: Path) -> None:
    other = model.with_name("other.gguf")
    other.write_bytes(model.read_bytes())
    trunks = {ensure_trunk(read_geometry(path), folder) for path in (model, other)}
    assert len(trunks) == 2
    assert all(trunk.is_file() for trunk in trunks)


def test_a_change_in_any_part_counts(tmp_path: Path, folder: Path) -> None:
    layout = TinyLayout(num_splits=2)
    parts = write_tiny("qwen3moe", tmp_path / "split.gguf", shape=ODD, layout=layout)
    first = ensure_trunk(read_geometry(parts[0]), folder)
    os.utime(parts[1], ns=(0, 0))
    assert ensure_trunk(read_geometry(parts[0]), folder) != first


# ---------------------------------------------------------------- damaged ones
def spoil(trunk: Path) -> None:
    """Zero the last third of a trunk."""
    size = trunk.stat().st_size
    with trunk.open("r+b") as file:
        os.pwrite(file.fileno(), bytes(size // 3), size - size // 3)


def test_a_damaged_trunk_is_written_anew(model: Path, folder: Path) -> None:
    geometry = read_geometry(model)
    trunk = ensure_trunk(geometry, folder)
    for damage in (spoil, Path.unlink):
        damage(trunk)
        assert rewrite_trunk(geometry, folder) == trunk
        assert is_whole(trunk, hole_names(geometry))
        assert trunk_tensors(trunk) == trunk_tensors(model)
    assert names(folder) == {trunk.name, trunk.stem + ".json"}


def test_a_trunk_that_another_process_wrote_anew_is_kept(model: Path, folder: Path) -> None:
    trunk = ensure_trunk(read_geometry(model), folder)
    before = trunk.stat()
    assert rewrite_trunk(read_geometry(model), folder) == trunk
    assert trunk.stat().st_ino == before.st_ino


def test_the_room_of_a_damaged_trunk_is_used(model: Path, disk: Path) -> None:
    geometry = read_geometry(model)
    trunk = ensure_trunk(geometry, disk)
    fill(disk, free_bytes=4096)
    spoil(trunk)
    assert is_whole(rewrite_trunk(geometry, disk), hole_names(geometry))


def test_a_damaged_trunk_where_nothing_can_be_written(model: Path, disk: Path) -> None:
    geometry = read_geometry(model)
    spoil(ensure_trunk(geometry, disk))
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(StorageError, match=r"Read-only file system.*; choose another folder with"):
        rewrite_trunk(geometry, disk)


# ---------------------------------------------------------- listing, removing
def test_listing_and_removing(model: Path, folder: Path) -> None:
    assert list_trunks(folder) == []
    assert remove_trunks(folder) == 0
    assert not folder.exists()
    trunk = ensure_trunk(read_geometry(model), folder)
    (listed,) = list_trunks(folder)
    assert (listed.path, listed.model) == (trunk, str(model))
    assert listed.disk_bytes >= sum(map(len, trunk_tensors(model).values()))
    assert remove_trunks(folder) == listed.disk_bytes
    assert names(folder) == set()
    assert list_trunks(folder) == []


def test_what_is_kept_of_its_experts_goes_with_a_trunk(model: Path, folder: Path) -> None:
    trunk = ensure_trunk(read_geometry(model), folder)
    (alone,) = list_trunks(folder)
    kept = resident_path(trunk)
    kept.write_bytes(bytes(5000))
    unfinished = kept.with_name(f"{kept.name}.a1_b2_c3")  # its process was killed
    unfinished.write_bytes(b"half of it")
    (listed,) = list_trunks(folder)
    assert listed.disk_bytes == alone.disk_bytes + kept.stat().st_blocks * 512
    os.utime(model, ns=(0, 0))
    newer = ensure_trunk(read_geometry(model), folder)
    assert not kept.exists() and not unfinished.exists()
    resident_path(newer).write_bytes(bytes(5000))
    (folder / f"{'0' * 12}-{'0' * 20}.resident").write_bytes(b"its trunk is gone")
    (listed,) = list_trunks(folder)
    assert listed.path == newer
    assert remove_trunks(folder) > listed.disk_bytes
    assert names(folder) == set()


def test_a_description_is_only_for_people(model: Path, folder: Path) -> None:
    trunk = ensure_trunk(read_geometry(model), folder)
    description = trunk.with_suffix(".json")
    assert json.loads(description.read_text())["model"] == str(model)
    for damaged in (b"{", b"[]", b"7", b'{"model', b"\xff\xfe", b"[" * 100_000, b"{}"):
        description.write_bytes(damaged)
        assert list_trunks(folder)[0].model == "unfinished or unknown"
    description.unlink()
    assert list_trunks(folder)[0].model == "unfinished or unknown"
    assert remove_trunks(folder) > 0


def test_other_files_in_the_folder_are_let_be(model: Path) -> None:
    """A user may keep trunks beside the models."""
    folder = model.parent
    precious = {"model.gguf", "model-q4.gguf.part", "notes.json", "0123-4567.gguf", "a.unfinished"}
    for name in precious - {"model.gguf"}:
        (folder / name).write_text("precious")
    trunk = ensure_trunk(read_geometry(model), folder)
    os.utime(model, ns=(0, 0))
    assert ensure_trunk(read_geometry(model), folder) != trunk
    assert len(list_trunks(folder)) == 1
    remove_trunks(folder)
    assert names(folder) == precious


def test_in_a_folder_without_files_of_ours_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_text("precious")
    assert remove_trunks(tmp_path) == 0
    assert names(tmp_path) == {"model.gguf"}


def test_what_cannot_be_removed_is_an_error(folder: Path) -> None:
    stubborn = folder / f"{'0' * 12}-{'0' * 20}.gguf"
    stubborn.mkdir(parents=True)
    with pytest.raises(StorageError, match=f"cannot remove the trunks from {folder}: "):
        remove_trunks(folder)


# ---------------------------------------------------------- several processes
# Prints each share done and waits for a line before it goes on; prints the trunk's path at last.
WRITER = """
import sys
from pathlib import Path
from haversack.quant.gguf import read_geometry
from haversack.quant.trunk import ensure_trunk

def progress(share: float) -> None:
    print("writing", flush=True)
    sys.stdin.readline()

geometry = read_geometry(Path(sys.argv[1]))
print("ready", flush=True)
print(ensure_trunk(geometry, Path(sys.argv[2]), progress))
"""


@contextmanager
def writer(model: Path, folder: Path) -> "Iterator[subprocess.Popen[str]]":
    """Start a process that will write the trunk. It is killed if it still runs at the end."""
    command = [sys.executable, "-c", WRITER, str(model), str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert said(process) == "ready"
            yield process
        finally:
            process.kill()


def said(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def last_words(process: "subprocess.Popen[str]") -> list[str]:
    """Let the process go on to its end."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.close()
    output = process.stdout.read()
    assert process.wait(60) == 0
    return output.split()


def test_a_killed_process_leaves_no_half_trunk(model: Path, folder: Path) -> None:
    with writer(model, folder) as process:
        assert said(process) == "writing"
        process.send_signal(signal.SIGKILL)
    (left,) = names(folder)
    assert NAME.fullmatch(left.removesuffix(".unfinished"))
    assert left.endswith(".unfinished")
    (listed,) = list_trunks(folder)
    assert (listed.path.name, listed.model) == (left, "unfinished or unknown")
    trunk = ensure_trunk(read_geometry(model), folder)
    assert trunk_tensors(trunk) == trunk_tensors(model)
    assert names(folder) == {trunk.name, trunk.stem + ".json"}


def test_what_a_killed_process_left_is_removed(model: Path, folder: Path) -> None:
    for remove_it in (remove_trunks, another_trunk):
        with writer(model, folder) as process:
            assert said(process) == "writing"
        assert any(name.endswith(".unfinished") for name in names(folder))
        remove_it(folder)
        assert not any(name.endswith(".unfinished") for name in names(folder))


def another_trunk(folder: Path) -> Path:
    (other,) = write_tiny("llama", folder.parents[1] / "other.gguf", shape=ODD)
    return ensure_trunk(read_geometry(other), folder)


def test_nobody_removes_what_is_being_written(model: Path, folder: Path) -> None:
    another_trunk(folder)
    with writer(model, folder) as process:
        assert said(process) == "writing"
        assert len(list_trunks(folder)) == 2
        assert remove_trunks(folder) > 0
        (listed,) = list_trunks(folder)
        assert listed.path.suffix == ".unfinished"
        path = Path(last_words(process)[-1])
    assert trunk_tensors(path) == trunk_tensors(model)


def test_of_two_processes_one_writes_and_the_other_waits(model: Path, folder: Path) -> None:
    with writer(model, folder) as first:
        assert said(first) == "writing"
        with writer(model, folder) as second:
            *written, path = last_words(first)
            assert set(written) == {"writing"}
            assert last_words(second) == [path]
    assert trunk_tensors(Path(path)) == trunk_tensors(model)


def test_who_waited_for_a_killed_process_writes(model: Path, folder: Path) -> None:
    with writer(model, folder) as first:
        assert said(first) == "writing"
        with writer(model, folder) as second:
            first.kill()
            *written, path = last_words(second)
    assert set(written) == {"writing"}
    assert trunk_tensors(Path(path)) == trunk_tensors(model)


def test_a_trunk_that_is_there_is_found_while_another_is_written(model: Path, folder: Path) -> None:
    other = another_trunk(folder)
    with writer(model, folder) as busy:
        assert said(busy) == "writing"
        with writer(folder.parents[1] / "other.gguf", folder) as process:
            assert last_words(process) == [str(other)]


def test_two_threads(model: Path, folder: Path) -> None:
    geometry = read_geometry(model)
    first_writes, go_on = threading.Event(), threading.Event()
    found: list[Path] = []

    def progress(_: float) -> None:
        first_writes.set()
        go_on.wait(60)

    def second_progress(_: float) -> None:
        pytest.fail("both wrote")

    first = threading.Thread(target=lambda: found.append(ensure_trunk(geometry, folder, progress)))
    first.start()
    assert first_writes.wait(60)
    second = threading.Thread(
        target=lambda: found.append(ensure_trunk(geometry, folder, second_progress))
    )
    second.start()
    go_on.set()
    first.join(60)
    second.join(60)
    assert len(found) == 2
    assert found[0] == found[1]


# ----------------------------------------------------------- when disks fail
@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Return a folder on a disk of 2 MiB."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2048k", "tmpfs", str(folder)]
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root on Linux can make a small disk")
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"cannot make a small disk: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path, free_bytes: int) -> None:
    status = os.statvfs(disk)
    full_bytes = status.f_bavail * status.f_bsize - free_bytes
    (disk / "precious").write_bytes(bytes(full_bytes // 4096 * 4096))


def test_a_disk_without_room_is_not_written_to(model: Path, disk: Path) -> None:
    fill(disk, free_bytes=65536)
    with pytest.raises(StorageError, match=r"cannot write the trunk .*only 64.0 KiB are free"):
        ensure_trunk(read_geometry(model), disk)
    assert names(disk) == {"precious"}


def test_a_disk_that_gets_full(model: Path, disk: Path) -> None:
    geometry = read_geometry(model)

    def progress(_: float) -> None:  # someone else takes the room that there was
        if not (disk / "precious").exists():
            fill(disk, free_bytes=0)

    with pytest.raises(StorageError, match=r"No space left on device; make room .* --cache-dir"):
        ensure_trunk(geometry, disk, progress)
    assert names(disk) == {"precious"}
    (disk / "precious").unlink()
    assert ensure_trunk(geometry, disk).is_file()


LIMITED = """
import resource, sys
from pathlib import Path
from haversack.devices.errors import StorageError
from haversack.quant.gguf import read_geometry
from haversack.quant.trunk import ensure_trunk

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    ensure_trunk(read_geometry(Path(sys.argv[1])), Path(sys.argv[2]))
except StorageError as error:
    print(error)
"""


@pytest.mark.parametrize("limit_bytes", [100, 100_000])  # in the header, in the middle
def test_a_file_that_cannot_grow(limit_bytes: int, model: Path, folder: Path) -> None:
    command = [sys.executable, "-c", LIMITED, str(model), str(folder), str(limit_bytes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "File too large; make room there or choose another folder" in done.stdout
    assert names(folder) == set()
    assert ensure_trunk(read_geometry(model), folder).is_file()


def test_a_folder_that_cannot_be(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    why = r"cannot write the trunk .*: Not a directory; choose another folder"
    with pytest.raises(StorageError, match=why):
        ensure_trunk(read_geometry(model), tmp_path / "file" / "trunks")


def test_what_progress_raises_comes_out_and_nothing_stays(model: Path, folder: Path) -> None:
    def progress(share: float) -> None:
        if share > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure_trunk(read_geometry(model), folder, progress)
    assert names(folder) == set()


def test_a_model_that_vanishes_or_shrinks(model: Path, folder: Path) -> None:
    geometry = read_geometry(model)
    os.truncate(model, model.stat().st_size // 2)
    with pytest.raises(StorageError, match=rf"^cannot read {model}: it became \d+ bytes shorter"):
        ensure_trunk(geometry, folder)
    assert names(folder) == set()
    model.unlink()
    with pytest.raises(StorageError, match=f"^cannot read {model}: .*No such file"):
        ensure_trunk(geometry, folder)


def test_n_grams_without_a_trunk_are_listed_by_themselves(tmp_path: Path) -> None:
    trunk = tmp_path / f"{'1' * 12}-{'a' * 20}.gguf"
    ngrams_path(trunk).write_bytes(bytes(5000))
    (lone,) = list_lone_ngrams(tmp_path)
    assert lone.path == ngrams_path(trunk) and lone.disk_bytes >= 5000
    trunk.write_bytes(b"the trunk")
    assert list_lone_ngrams(tmp_path) == []
    (listed,) = list_trunks(tmp_path)
    assert listed.disk_bytes > lone.disk_bytes
    remove_trunks(tmp_path)
    assert not ngrams_path(trunk).exists()
