"""Evaluation: exact compared with itself, the report's numbers, and errors for wrong input."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haversack import edge
from haversack.devices.errors import HaversackError, PromptError, StorageError
from haversack.edge.evaluation import Evaluation, draw_pareto, plans_to_measure, text_of
from haversack.edge.fidelity import MODES
from haversack.edge.fidelity_options import FidelityOptions
from haversack.edge.loading import LoadOptions, builtin_model
from haversack.edge.model_plan import Plan
from haversack.edge.options import ModelOptions
from haversack.edge.planner import streamed
from haversack.tools.models.architectures import TinyShape

SMALL = TinyShape(num_hidden_layers=2, num_experts=8, vocab_size=64)
PROGRAM = [sys.executable, "-m", "haversack.edge"]


@pytest.fixture(scope="module")
def text() -> str:
    phrases = ["the fox ran home ", "and the king slept ", "in the snow. ", "Then a bear came, "]
    return "".join(np.random.default_rng(0).choice(phrases, 200))


def tight(ctx: int = 256) -> Plan:
    return streamed(edge.plan(builtin_model(), ram="1GiB", ctx=ctx, threads=1), 0.3)


def haversack(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [*PROGRAM, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_exact_beside_itself_differs_in_nothing(text: str, trunk_dir: Path) -> None:
    told: list[tuple[str, float]] = []
    options = LoadOptions(
        cache_dir=trunk_dir, warm_start=False, progress=lambda *step: told.append(step)
    )
    first, again = Evaluation(text, 600, options).run(tight(), [tight()])
    assert first.report == again.report
    assert first.report.num_tokens > 400
    assert (first.report.kl_mean, first.report.top1_agreement) == (0, 1)
    assert 1 < first.report.perplexity < 4096
    assert first.bytes_read > 0 and again.bytes_read > 0  # each begins with empty slots
    assert first.uses_high == first.report.num_tokens * 8 * 4  # layers, experts a token uses
    assert first.uses_low == first.uses_skipped == first.saved_bytes == 0
    shares = [share for what, share in told if what == "exact: measuring"]
    assert shares[-1] == 1 and max(shares) == 1
    assert not [path for path in trunk_dir.iterdir() if path.name.startswith("tmp")]


def test_the_numbers_are_those_of_the_models_logits(text: str, trunk_dir: Path) -> None:
    options = LoadOptions(cache_dir=trunk_dir, warm_start=False)
    (found,) = Evaluation(text, 256, options).run(tight(512), [])
    with edge.load(tight(512), options=options) as model:
        tokens = [*model.tokenize(""), *model.tokenize(text, add_special=False)[:256]]
        first = len(tokens) // 8 + 1 + 64
        logits = model.logits(tokens[:-1], len(tokens) // 8)[65:].astype(np.float64)
    nats = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(logits)), tokens[first:]]
    assert found.report.num_tokens == len(nats)
    assert found.report.perplexity == pytest.approx(np.exp(nats.mean()))


def test_substituted_experts_are_streamed_and_seen(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    shape = TinyShape(num_experts=16, num_experts_per_tok=4)
    high, low = (tiny_model(shape=shape, expert_type=kind) for kind in ("Q8_0", "Q2_K"))
    exact = streamed(edge.plan(high, ram="1GiB", ctx=256, threads=1), 0.5)
    asked = [*(edge.Fidelity(mode, low) for mode in MODES[1:]), edge.Fidelity(route_bias=0.4)]
    others = [each.applied(exact, tmp_path) for each in asked]
    text = " ".join(map(str, np.random.default_rng(0).integers(512, size=400)))
    options = LoadOptions(cache_dir=tmp_path, warm_start=False)
    found = {each.fidelity: each for each in Evaluation(text, 400, options).run(exact, others)}
    assert list(found) == ["exact", "balanced", "fast", "exact, bias 0.4"]
    leaning = found["exact, bias 0.4"]
    assert leaning.uses_leaned > 0 == leaning.uses_low == found["balanced"].uses_leaned
    assert leaning.report.kl_mean > 0 and leaning.bytes_read < found["exact"].bytes_read
    for each in (found["balanced"], found["fast"]):
        assert each.uses_low > 0 and each.saved_bytes > 0
        assert each.report.kl_mean > 0 and each.report.top1_agreement < 1
        assert each.report.exact_perplexity == found["exact"].report.perplexity
    assert found["fast"].uses_skipped > found["balanced"].uses_skipped


def test_what_a_kv_type_costs_is_measured(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    model = ModelOptions(tiny_model(), ram="2GiB", ctx=256, threads=1, kv_type="q4_0")
    plans = plans_to_measure(model, FidelityOptions(cache_dir=tmp_path), every=False)
    text = " ".join(map(str, np.random.default_rng(0).integers(512, size=300)))
    options = LoadOptions(cache_dir=tmp_path, warm_start=False)
    exact, small = Evaluation(text, 300, options).run(plans[0], plans[1:])
    assert (exact.kv_type, small.kv_type) == ("f16", "q4_0")
    assert exact.fidelity == small.fidelity == "exact"
    assert small.report.kl_mean > exact.report.kl_mean == 0


def test_all_modes_are_measured_with_a_bias_and_without(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    high, low = (tiny_model(shape=SMALL, expert_type=kind) for kind in ("Q8_0", "Q2_K"))
    planned = streamed(edge.plan(high, ram="1GiB", ctx=256, threads=1), 0.7)
    monkeypatch.setattr(ModelOptions, "plan", lambda *_: planned)
    asked = FidelityOptions(tmp_path, low_from=low, route_bias=0.1)
    plans = plans_to_measure(ModelOptions(high), asked, every=True)
    found = [(each.fidelity, each.leaning and each.leaning.bias) for each in plans[-5:]]
    biased = [(mode, 0.1) for mode in MODES]
    assert plans[0] is planned and found == [("balanced", None), ("fast", None), *biased]
    exact, leaning = plans_to_measure(ModelOptions(high), replace(asked, low_from=None), False)
    assert exact is planned and (leaning.fidelity, leaning.precision) == ("exact", None)


def test_short_texts_and_contexts_are_refused(text: str, trunk_dir: Path) -> None:
    options = LoadOptions(cache_dir=trunk_dir, warm_start=False)
    with pytest.raises(PromptError, match=r"100 tokens of text .* of 256 or more"):
        list(Evaluation(text, 100, options).run(tight(), []))
    with pytest.raises(PromptError, match=r"a context of 64 tokens is too short .*--ctx 256"):
        list(Evaluation(text, 600, options).run(tight(64), []))


def test_a_small_disk_is_told_first(
    text: str, trunk_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = shutil.disk_usage(trunk_dir)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    options = LoadOptions(cache_dir=trunk_dir, warm_start=False)
    with pytest.raises(StorageError, match=r"logits of \d+ tokens need .*1000 B free: lower --tok"):
        list(Evaluation(text, 600, options).run(tight(), []))


def test_a_text_is_read_as_far_as_it_can_matter(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("\ufeffä" * 10, encoding="utf-8")
    assert text_of(path, 100) == "ä" + "\ufeffä" * 9
    path.write_bytes("ä".encode() * 3000)  # of which an odd number of bytes is read
    assert set(text_of(path, 1)) == {"ä"}
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(PromptError, match="is not UTF-8 text: convert it"):
        text_of(path, 100)
    with pytest.raises(PromptError, match="cannot read --text"):
        text_of(tmp_path / "missing", 100)


RESULTS: list[dict[str, Any]] = [
    {"fidelity": "exact", "kv_type": "f16", "kl_mean": 0.0, "bytes_read_per_token": 4 << 20},
    {"fidelity": "exact", "kv_type": "q4_0", "kl_mean": 0.1, "bytes_read_per_token": 4 << 20},
    {"fidelity": "fast", "kv_type": "f16", "kl_mean": 0.1, "bytes_read_per_token": 1 << 20},
]


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw_pareto(RESULTS, tmp_path / "fidelity.png")
    assert (tmp_path / "fidelity.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(StorageError, match="cannot write --png"):
        draw_pareto(RESULTS, tmp_path)


def test_without_matplotlib_no_picture_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(HaversackError, match="matplotlib is missing: pip install matplotlib"):
        draw_pareto(RESULTS, tmp_path / "fidelity.png")


# -------------------------------------------------------------------- the command
def test_eval_prints_one_object(text: str, trunk_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text(text)
    done = haversack("eval", "--text", path, "-n", 300, "--cache-dir", trunk_dir, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    (exact,) = json.loads(done.stdout)["levels"]
    assert (exact["fidelity"], exact["perplexity_rise"], exact["kl_p999"]) == ("exact", 0, 0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "no text is given: give --text FILE"),
        (("--text", "no/such"), "cannot read --text no/such: No such file"),
        (("--text", __file__, "-n", "255"), "-n is 255: give 256 or more"),
        (("--text", __file__, "-n", "ten"), "--tokens is 'ten': give a whole number"),
        (("--text", __file__, "--fidelity", "best"), "--fidelity is 'best'"),
        (("--text", __file__, "--fidelity", "fast"), "or give a smaller GGUF"),
        (("--text", __file__, "--all"), "run `haversack prepare"),
        (("--text", __file__, "--all", "--fidelity", "fast", "--low-share", "0.1"), "--all meas"),
    ],
)
def test_wrong_arguments_are_one_line(arguments: tuple[str, ...], said: str) -> None:
    done = haversack("eval", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and said in done.stderr


def test_ctrl_c_ends_it_cleanly(text: str, trunk_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text(text * 20)
    command = [*PROGRAM, "eval", "--text", path, "-n", "9999", "--cache-dir", trunk_dir, "-v"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stderr is not None
        process.stderr.readline()  # it has begun to load
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=300)
    assert (process.returncode, output) == (130, "")
    assert "Traceback" not in errors
