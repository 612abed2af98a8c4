"""The program as its users meet it: every test runs it in a process of its own."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from haversack import edge
from haversack.tools.models.architectures import TinyShape, tiny_metadata
from haversack.tools.models.authoring import random_model
from haversack.tools.routing.trace import main as record_trace

PROGRAM = [sys.executable, "-m", "haversack.edge"]
LONG_CTX = 32768  # a text that fills it fills the pipe before, and waits there for its reader
_ROOT = Path(__file__).parents[2]
EXPECTED = _ROOT / "tools" / "models" / "stories260k" / "expected_greedy.txt"

TinyModel = Callable[..., Path]
Result = subprocess.CompletedProcess[str]


def quiet() -> dict[str, str]:
    """The environment of now, in which idle threads do not spin: tests share cores."""
    return {**os.environ, "OMP_WAIT_POLICY": "passive"}


def haversack(*arguments: object, stdin: str = "") -> Result:
    """Run the program; what it printed."""
    command = [*PROGRAM, *map(str, arguments)]
    return subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=300, env=quiet()
    )


@contextmanager
def started(*arguments: object) -> Generator[subprocess.Popen[str]]:
    """The program running; killed after the block if it still runs."""
    command = [*PROGRAM, *map(str, arguments)]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, text=True, stdin=pipe, stdout=pipe, stderr=pipe, env=quiet()
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def printed_object(result: Result) -> dict[str, Any]:
    """The one JSON object on stdout, of a run that went well and said nothing else."""
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count("\n") == 1
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def model(tiny_model: TinyModel) -> Path:
    return tiny_model()


def tight_budget(model: Path, *options: object) -> str:
    """A budget that the model runs in, though not with all its experts."""
    planned = printed_object(haversack("plan", model, *options, "--ram", "1GiB", "--json"))
    return f"{(planned['floor_bytes'] + planned['full_bytes']) // 2}B"


@pytest.fixture(scope="module")
def tight(model: Path) -> str:
    return tight_budget(model)


# ------------------------------------------------------------------- answers
@pytest.mark.slow
def test_the_known_answer(known_answer_model: Path) -> None:
    result = haversack("run", known_answer_model, "-p", "", "--temp", 0, "-n", 200)
    assert (result.returncode, result.stdout) == (0, EXPECTED.read_text())
    shorter = haversack("run", known_answer_model, "-p", "", "--temp", 0, "-n", 199)
    assert EXPECTED.read_text().startswith(shorter.stdout)
    assert len(shorter.stdout) > 450


def test_run_prints_one_object(model: Path, tight: str, trunk_dir: Path) -> None:
    options = ("--ram", tight, "--cache-dir", trunk_dir, "--temp", 0, "--seed", 5)
    found = printed_object(haversack("run", model, "-p", "1 2 3", "-n", 9, *options, "--json"))
    assert found["tokens"] == len(found["token_ids"]) == 9
    assert found["text"].split() == [str(token) for token in found["token_ids"]]
    assert (found["prompt_tokens"], found["finish_reason"]) == (3, "length")
    assert (found["mode"], found["seed"]) == ("streamed", 5)
    assert found["misses"] > 0 and found["bytes_read"] > 0 and found["disk_bytes_s"] > 0
    assert found["prefill_s"] > 0 and found["decode_s"] > 0 and found["decode_tok_s"] > 0
    assert found["wait_s"] >= 0 and found["hits"] >= 0
    assert found["ram_peak_bytes"] <= found["ram_budget_bytes"]
    assert found["ram_planned_bytes"] <= found["ram_budget_bytes"] == int(tight[:-1])
    assert sum(entry["reserved_bytes"] for entry in found["budget"]) == found["ram_budget_bytes"]
    assert {"process", "trunk", "kv", "slots", "free"} <= {
        entry["name"] for entry in found["budget"]
    }


@pytest.mark.slow
def test_one_seed_gives_one_text(model: Path, tight: str, trunk_dir: Path) -> None:
    options = ("-p", "7 8 9", "-n", 30, "--seed", 11, "--cache-dir", trunk_dir)
    streamed = [haversack("run", model, *options, "--ram", tight).stdout for _ in range(2)]
    resident = haversack("run", model, *options, "--ram", "1GiB").stdout
    assert len(resident.split()) == 30
    assert streamed == [resident, resident]


@pytest.mark.slow
def test_the_prompt_may_come_through_a_pipe() -> None:
    piped = haversack("run", "--temp", 0, "-n", 8, stdin="Lily went\n")
    dashed = haversack("run", "-p", "-", "--temp", 0, "-n", 8, stdin="Lily went")
    given = haversack("run", "-p", "Lily went", "--temp", 0, "-n", 8)
    assert piped.stdout == dashed.stdout == given.stdout != ""


@pytest.mark.slow
def test_a_seed_that_was_not_given_is_told() -> None:
    first = printed_object(haversack("run", "-p", "", "-n", 20, "--json"))
    again = haversack("run", "-p", "", "-n", 20, "--json", "--seed", first["seed"])
    assert printed_object(again)["token_ids"] == first["token_ids"]


@pytest.mark.slow
def test_stop_strings_grammars_and_schemas(known_answer_model: Path, tmp_path: Path) -> None:
    greedy = ("run", known_answer_model, "-p", "", "--temp", 0)
    stopped = haversack(*greedy, "--stop", "little", "--stop", "zzz")
    assert stopped.stdout == "Once upon a time, there was a "
    (tmp_path / "yes.gbnf").write_text('root ::= "yes" | "no"')
    chosen = haversack("run", "-p", "", "--grammar", tmp_path / "yes.gbnf")
    assert chosen.stdout in ("yes", "no")
    schema = haversack("run", "-p", "", "--json-schema", '{"type": "boolean"}')
    assert json.loads(schema.stdout) in (True, False)


def test_verbose_shows_the_log_and_a_summary() -> None:
    result = haversack("run", "-p", "", "-n", 3, "-v")
    assert "haversack.llama: " in result.stderr
    assert "\n3 tokens, " in result.stderr


def test_a_dense_model_runs_and_says_so(tmp_path: Path) -> None:
    dense = {key: value for key, value in metadata("llama").items() if "expert" not in key}
    random_model(dense, noise, tmp_path / "dense.gguf")
    result = haversack("run", tmp_path / "dense.gguf", "-p", "1 2", "-n", 4, "--json")
    assert (result.returncode, result.stderr.count("\n")) == (0, 1)
    assert "dense.gguf has no routed experts: it runs plainly" in result.stderr
    assert json.loads(result.stdout)["mode"] == "dense"


def test_a_context_beyond_what_a_model_was_trained_with_is_told(model: Path) -> None:
    """Text is generated all the same: some models bear it."""
    result = haversack("run", model, "-p", "1 2", "-n", 4, "--ctx", 513, "--ram", "1GiB")
    assert (result.returncode, result.stderr.count("\n")) == (0, 1)
    assert "was trained with 512 tokens of context, this one has 513" in result.stderr


def metadata(architecture: str) -> dict[str, Any]:
    return dict(tiny_metadata(architecture, TinyShape()))


def noise(name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    return np.random.default_rng(len(name)).standard_normal(shape, np.float32) * np.float32(0.1)


# ----------------------------------------------------------------- other commands
def test_a_plan_adds_up_to_the_byte(model: Path, tight: str) -> None:
    found = printed_object(haversack("plan", model, "--ram", tight, "--json"))
    parts = ("trunk", "kv", "compute", "reserve", "slot", "headroom")
    assert sum(found[f"{part}_bytes"] for part in parts) == found["ram_bytes"] == int(tight[:-1])
    table = haversack("plan", model, "--ram", tight).stdout
    assert f"{found['slot_bytes']:,}" in table
    assert "slots for" in table


def test_bench_prints_one_object(model: Path, tight: str, trunk_dir: Path) -> None:
    work = ("-p", 40, "--warm-tokens", 5, "--ctx", 512, "--ram", tight, "--cache-dir", trunk_dir)
    compared = ("--tokens", 8, "--compare", "llama.cpp", "--json")
    found = printed_object(haversack("bench", model, *work, *compared))
    assert (found["prompt_tokens"], found["decode_tokens"], found["mode"]) == (40, 8, "streamed")
    assert (found["warm_tokens"], found["compare"], found["same_logits"]) == (5, "llama.cpp", True)
    assert found["compare_decode_s_per_token"] > 0 and found["compare_prefill_s"] > 0
    assert found["device_bytes_s"] > 0 and found["ratio_to_bound"] > 0
    assert found["decode_tok_s"] * found["decode_s_per_token"] == pytest.approx(1)
    assert found["hit_rate"] == found["hits"] / (found["hits"] + found["misses"])
    assert found["prefill_tok_s"] > 0 and found["bytes_read_per_token"] > 0
    assert found["ram_peak_bytes"] <= found["ram_budget_bytes"]
    table = haversack("bench", model, *work, "-n", 8).stdout
    assert "decode_tok_s" in table and "compare" not in table


@pytest.mark.slow
def test_bench_forces_a_recorded_routing_that_fits(
    model: Path, tight: str, trunk_dir: Path, tmp_path: Path
) -> None:
    options = ("-p", 8, "--warm-tokens", 4, "-n", 6, "--cache-dir", trunk_dir)
    assert record_trace([str(edge.builtin_model()), str(tmp_path / "own.npz"), "-n", "9"]) == 0
    forced = (*options, "--trace", tmp_path / "own.npz", "--ram")
    found = printed_object(haversack("bench", *forced, "96MiB", "--compare", "llama.cpp", "--json"))
    assert found["trace_steps"] == 8 and found["same_logits"]
    refused = haversack("bench", model, *forced, tight)
    of_both = ["8 layers of 32 experts, 4 per token", "3 layers of 8 experts, 2 per token"]
    assert_refused(refused, 2, "the trace own", *of_both)


def test_doctor_names_the_source_of_each_value(model: Path, tmp_path: Path) -> None:
    options = ("--model", model, "--cache-dir", tmp_path)
    found = printed_object(haversack("doctor", *options, "--json"))
    package = found["llama_build"]["value"]
    assert found[package.replace("-", "_")]["value"] == version(package)
    assert found["ram_available_bytes"]["value"] > 0
    assert found["disk_bytes_s"]["value"] > 0
    assert found["trunks"]["value"] == []
    assert "SSE3" in found["instruction_sets"]["value"] or os.uname().machine != "x86_64"
    assert all(entry["source"] for entry in found.values())


def test_doctor_says_how_to_measure_a_drive(tmp_path: Path) -> None:
    assert "haversack doctor --model FILE" in haversack("doctor", "--cache-dir", tmp_path).stdout


@pytest.mark.slow
def test_cache_lists_and_clears(model: Path, tight: str, tmp_path: Path) -> None:
    options = ("--cache-dir", tmp_path / "trunks")
    assert printed_object(haversack("cache", *options, "--json"))["trunks"] == []
    assert "nothing is cached in" in haversack("cache", *options).stdout
    assert_refused(haversack("cache", "--cache-dir", model), 2, "is a file", "--cache-dir")
    haversack("run", model, "-p", "1", "-n", 1, "--ram", tight, *options)
    assert list((tmp_path / "trunks").glob("*.resident"))
    found = printed_object(haversack("cache", *options, "--json"))
    assert [trunk["model"] for trunk in found["trunks"]] == [str(model)]
    assert found["disk_bytes"] == found["trunks"][0]["disk_bytes"] > 0
    cleared = printed_object(haversack("cache", *options, "--clear", "--json"))
    assert cleared["freed_bytes"] == found["disk_bytes"]
    assert [path.name for path in (tmp_path / "trunks").iterdir()] == ["lock"]


def test_help_and_version() -> None:
    assert haversack("--version").stdout == f"haversack {version('haversack')}\n"
    alone = haversack()
    assert alone.returncode == 0
    for command in ("run", "chat", "plan", "bench", "doctor", "cache"):
        assert command in alone.stdout
    assert "--json-schema" in haversack("run", "--help").stdout


# ------------------------------------------------------------------ bad input
def assert_refused(result: Result, exit_code: int, *words: str) -> None:
    """One line on stderr that holds `words`, nothing on stdout."""
    assert (result.returncode, result.stdout) == (exit_code, ""), result
    assert result.stderr.startswith("haversack: ") and result.stderr.count("\n") == 1, result.stderr
    for word in words:
        assert word in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "-p", "x", "--ram", "6"], ['"6" has no unit', "6GiB"]),
        (["run", "-p", "x", "--ram", "6 apples"], ['unknown unit "apples"', "GiB"]),
        (["run", "-p", "x", "--temp", "warm"], ["--temp is 'warm'", "give a number"]),
        (["run", "-p", "x", "--temp", "-1"], ["temperature is -1.0", "0 to 100"]),
        (["run", "-p", "x", "-n", "1.5"], ["--max-tokens is '1.5'", "whole number"]),
        (["run", "-p", "x", "--ctx", "0"], ["ctx is 0"]),
        (["run", "-p", "x", "--stop", ""], ["stop"]),
        (["run", "-p", "x", "--grammar", "no/such.gbnf"], ["cannot read --grammar no/such.gbnf"]),
        (["run", "-p", "x", "--json-schema", "{1"], ["JSON"]),
        (["run", "-p", "a" * 2000, "--ctx", "64"], ["the context holds 64", "--ctx"]),
        (["run", "--frobnicate"], ["--frobnicate", "--help"]),
        (["run", "one.gguf", "two.gguf"], ["two.gguf", "--help"]),
        (["run", "", "-p", "x"], ["MODEL is empty", "leave it out"]),
        (["run", "./x/y/z.gguf", "-p", "x"], ["x/y/z.gguf does not exist", "path of a GGUF file"]),
        (["fly"], ["fly", "--help"]),
        (["bench", "-n", "0"], ["-n is 0"]),
        (["bench", "--warm-tokens", "-1"], ["--warm-tokens is -1", "0 or more"]),
        (["bench", "--compare", "vllm"], ["--compare is 'vllm'", "give llama.cpp"]),
        (["bench", "--sweep", "3", "--compare", "llama.cpp"], ["--sweep and --compare are given"]),
        (["bench", "--sweep", "3", "--simulate-gpu", "x"], ["--sweep and --simulate-gpu are"]),
        (
            ["bench", "--simulate-gpu", "vram=1GiB"],
            ["needs vram and link", "vram=2GiB,link=12GB/s"],
        ),
        (["serve", "--keep-alive", "nan"], ["--keep-alive is nan", "-1 for never"]),
        (["serve", "--keep-alive", "-0.5"], ["--keep-alive is -0.5"]),
        (["serve", "--origin", "garbage"], ["--origin is 'garbage'", "https://example.org"]),
        (["serve", "--origin", ""], ["--origin is ''"]),
        (["serve", "--origin", "https://a.example/"], ["without a path"]),
        (["bench", "--trace", "no/such.npz"], ["cannot read the trace no/such.npz", "; give a"]),
        (["bench", "--sweep", "2", "--png", "no/x.png"], ["there is no folder no", "give --png"]),
    ],
    ids=" ".join,
)
def test_a_wrong_option_gets_one_line(arguments: list[str], words: list[str]) -> None:
    assert_refused(haversack(*arguments), 2, *words)


def diffusion_model(folder: Path) -> Path:
    """A whole model that llama.cpp loads, and which computes a text at once."""
    metadata = tiny_metadata("llama", TinyShape(num_hidden_layers=2, vocab_size=64))
    metadata = {name.replace("llama.", "llada.", 1): value for name, value in metadata.items()}
    metadata["general.architecture"] = "llada"
    random_model(metadata, lambda _, shape: np.ones(shape, np.float32), folder / "llada.gguf")
    return folder / "llada.gguf"


@pytest.mark.parametrize("command", ["plan", "run", "chat", "bench"])
def test_a_model_of_another_kind_is_told_by_every_command(command: str, tmp_path: Path) -> None:
    prompt = ["-p", "1"] if command == "run" else []
    result = haversack(command, diffusion_model(tmp_path), *prompt)
    assert_refused(result, 2, "llada.gguf is a diffusion model (llada): haversack runs causal text")


def missing(model: Path, folder: Path) -> Path:
    return folder / "missing.gguf"


def folder_itself(model: Path, folder: Path) -> Path:
    return folder


def empty(model: Path, folder: Path) -> Path:
    (folder / "empty.gguf").touch()
    return folder / "empty.gguf"


def no_gguf(model: Path, folder: Path) -> Path:
    (folder / "story.gguf").write_text("Once upon a time\n" * 99)
    return folder / "story.gguf"


def truncated(model: Path, folder: Path) -> Path:
    (folder / "short.gguf").write_bytes(model.read_bytes()[:-5000])
    return folder / "short.gguf"


def truncated_header(model: Path, folder: Path) -> Path:
    (folder / "shorter.gguf").write_bytes(model.read_bytes()[:300])
    return folder / "shorter.gguf"


def lonely_part(model: Path, folder: Path) -> Path:
    (folder / "m-00001-of-00002.gguf").write_bytes(model.read_bytes())
    return folder / "m-00001-of-00002.gguf"


def unknown_architecture(model: Path, folder: Path) -> Path:
    (folder / "new.gguf").write_bytes(model.read_bytes().replace(b"qwen3moe", b"qwen9moe"))
    return folder / "new.gguf"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (missing, ["missing.gguf does not exist"]),
        (folder_itself, ["is a folder"]),
        (empty, ["empty.gguf", "GGUF"]),
        (no_gguf, ["story.gguf", "GGUF"]),
        (truncated, ["short.gguf is truncated", "download it again"]),
        (truncated_header, ["shorter.gguf"]),
        (lonely_part, ["m-00002-of-00002.gguf", "put all parts"]),
        (unknown_architecture, ["qwen9moe"]),
    ],
)
def test_a_model_that_cannot_run_gets_one_line(
    model: Path, tmp_path: Path, spoil: Callable[[Path, Path], Path], words: list[str]
) -> None:
    result = haversack("run", spoil(model, tmp_path), "-p", "1", "-n", 1, "--json")
    assert_refused(result, 2, *words)


@pytest.mark.parametrize("command", ["plan", "run", "bench"])
def test_a_budget_below_the_floor_exits_with_3(model: Path, command: str) -> None:
    prompt = ["-p", "1"] if command != "plan" else []
    result = haversack(command, model, *prompt, "--ram", "50MiB", "--json")
    assert_refused(result, 3, "needs at least", "the budget is 50.0 MiB", "raise --ram")


def test_the_floor_in_the_message_is_enough(model: Path, trunk_dir: Path) -> None:
    refused = haversack("plan", model, "--ram", "1MiB").stderr
    floor = f"{refused.partition('(')[2].split()[0]}B"
    found = haversack(
        "run", model, "-p", "1", "-n", 2, "--ram", floor, "--cache-dir", trunk_dir, "--json"
    )
    assert printed_object(found)["mode"] == "streamed"


def test_a_prompt_that_is_no_text_gets_one_line() -> None:
    command = [*PROGRAM, "run", "-n", "1"]
    piped = subprocess.run(command, input=b"ab\xff", capture_output=True, timeout=300)
    assert piped.returncode == 2
    assert b"stdin is not UTF-8 text (byte 0xff at 2)" in piped.stderr
    given = subprocess.run([*command, "-p", b"\xff"], capture_output=True, timeout=300)
    assert given.returncode == 2
    assert b"--prompt is not UTF-8 text" in given.stderr


@contextmanager
def full_drive(folder: Path) -> Generator[Path]:
    """A folder with room for 64 KiB, or one that cannot be written where mounting is refused."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if sys.platform == "linux" and os.geteuid() == 0:
        if subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("root without the right to mount: every folder has room")
        try:
            yield folder
        finally:
            subprocess.run(["umount", str(folder)], check=True)
    else:
        folder.chmod(0o500)
        yield folder


def test_no_room_for_the_trunk(model: Path, tight: str, tmp_path: Path) -> None:
    with full_drive(tmp_path / "full") as folder:
        run = ("run", model, "-p", "1", "-n", 1, "--ram", tight, "--cache-dir", folder)
        assert_refused(haversack(*run), 2, "cannot write the trunk", "--cache-dir")
        assert list(folder.glob("*.gguf*")) == []


def test_a_model_cut_short_while_it_answers(model: Path, trunk_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(model.read_bytes())
    ram = tight_budget(model, "--ctx", LONG_CTX)
    options = ("-p", "1", "--ram", ram, "--cache-dir", trunk_dir, "--ctx", LONG_CTX, "--seed", 1)
    with started("run", copy, *options) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        os.truncate(copy, 4096)
        _, stderr = process.communicate(timeout=300)
    assert process.returncode == 2
    _longer_than_trained, error = stderr.splitlines()
    assert error.startswith(f"haversack: {copy}: wanted ")


# ----------------------------------------------------------------- interruption
def assert_interrupted(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "Traceback" not in stderr


def prefilling(process: subprocess.Popen[str]) -> None:
    """Return when the program has loaded its model and begins with the prompt."""
    assert process.stderr is not None
    while "prefill of" not in (line := process.stderr.readline()):
        assert line, "the program has ended"


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is no signal to one process there")
@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "resident"])
def test_ctrl_c_in_prefill(model: Path, trunk_dir: Path, streamed: bool) -> None:
    options = ("--ctx", LONG_CTX, "--batch", 64)
    ram = tight_budget(model, *options) if streamed else "1GiB"
    prompt = " ".join(str(token % 500) for token in range(8000))
    run = ("run", model, "-v", "-p", prompt, *options, "--ram", ram, "--cache-dir", trunk_dir)
    with started(*run) as process:
        prefilling(process)
        assert_interrupted(process)


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is no signal to one process there")
def test_ctrl_c_in_decode_and_the_run_after_it(model: Path, trunk_dir: Path) -> None:
    ram = tight_budget(model, "--ctx", LONG_CTX)
    options = ("-p", "1", "--ram", ram, "--cache-dir", trunk_dir, "--ctx", LONG_CTX)
    with started("run", model, *options) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        assert_interrupted(process)
    assert haversack("run", model, *options, "-n", 2).returncode == 0


def test_a_reader_that_leaves_is_no_error(model: Path) -> None:
    with started("run", model, "-p", "1", "--ctx", LONG_CTX, "--ram", "1GiB") as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        (notice,) = process.stderr.read().splitlines()
        assert "context" in notice
        assert process.wait(timeout=300) != 0


@pytest.mark.parametrize(("key", "value"), [("block_count", 7777), ("rope.dimension_count", 7)])
def test_metadata_without_sense_are_one_line(
    key: str, value: int, model: Path, tmp_path: Path
) -> None:
    """llama.cpp would end the process with a dump of its stack."""
    name = f"qwen3moe.{key}".encode()
    content = bytearray(model.read_bytes())
    place = content.index(name) + len(name) + 4  # after the value's type
    content[place : place + 4] = value.to_bytes(4, "little")
    path = tmp_path / "senseless.gguf"
    path.write_bytes(content)
    result = haversack("run", path, "-p", "1 2", "-n", 2, "--ram", "1GiB")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("haversack: ")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full here")
def test_output_that_cannot_be_written_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        command = [*PROGRAM, "run", "-p", "", "-n", "300"]
        result = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1 and "cannot write the output" in result.stderr


def test_memory_that_the_system_does_not_give_is_one_line() -> None:
    code = (
        "from haversack.edge import program\n"
        "def app(**_): raise MemoryError('Unable to allocate 1 MiB')\n"
        "program.app = app\n"
        "raise SystemExit(program.run())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1 and "Unable to allocate 1 MiB" in result.stderr


def test_the_shell_completes_commands() -> None:
    asked = {
        "_HAVERSACK_COMPLETE": "complete_bash",
        "COMP_WORDS": "haversack ch",
        "COMP_CWORD": "1",
    }
    command = [sys.executable, "-m", "haversack.edge"]
    found = subprocess.run(command, env={**os.environ, **asked}, capture_output=True, text=True)
    assert (found.returncode, found.stdout.split()) == (0, ["chat"])
