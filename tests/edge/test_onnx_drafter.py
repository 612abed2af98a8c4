"""A drafter in ONNX: it computes what the GGUF does, the text is that without it, and what it takes
is in the plan."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from haversack import edge
from haversack.devices.llama import ContextShape, LlamaContext, Row
from haversack.devices.llama_model import LlamaModel
from haversack.edge import draft_source, onnx_context
from haversack.edge.draft_model import DraftModel
from haversack.edge.drafter_plan import plan_drafter
from haversack.edge.onnx_context import OnnxContext, OnnxModel
from haversack.edge.onnx_ports import read_ports
from haversack.edge.onnx_vocabulary import OnnxVocabulary
from haversack.edge.planner import streamed, with_drafts
from haversack.tools.models.onnx_decoder import write_folder

MODELS = Path(__file__).parents[1] / "data" / "models"
TALE = "Once upon a time there was a fox. One day the fox met a"
SHAPE = ContextShape(256, 32, 1, sequences=2)


@pytest.fixture(scope="module")
def onnx_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function that gives a model of tests/data as optimum would have written it."""
    folder = tmp_path_factory.mktemp("onnx")

    def give(name: str) -> Path:
        path = folder / name / "model.onnx"
        return path if path.exists() else write_folder(MODELS / f"{name}.gguf", folder / name)

    return give


def changed(path: Path, folder: Path, change: Callable[[Any], None]) -> Path:
    """A copy of the model with another graph, without its weights."""
    model = onnx.load(str(path))
    del model.graph.initializer[:]
    change(model.graph)
    onnx.save(model, str(folder / "model.onnx"))
    return folder / "model.onnx"


# ----------------------------------------------------------------------- the file
def test_ports_are_read_without_the_weights(onnx_model: Callable[[str], Path]) -> None:
    path = onnx_model("tales-draft")
    ports = read_ports(path)
    assert (len(ports.pasts), ports.num_heads, ports.head_dim) == (8, 2, 64)
    assert ports.pasts[:2] == ("past_key_values.0.key", "past_key_values.0.value")
    assert ports.token_bytes == 8 * 2 * 64 * 4 and ports.num_logits == 2048
    assert ports.weights_bytes == path.stat().st_size
    assert ports.largest_bytes == pytest.approx(2048 * 256 * 4, rel=0.01)


def test_weights_of_other_files_are_counted(
    onnx_model: Callable[[str], Path], tmp_path: Path
) -> None:
    model = onnx.load(str(onnx_model("tales-draft")))
    whole = onnx_model("tales-draft").stat().st_size
    path = tmp_path / "model.onnx"
    onnx.save(model, str(path), save_as_external_data=True, location="model.onnx_data")
    assert read_ports(path).weights_bytes == pytest.approx(whole, rel=0.02)
    (tmp_path / "model.onnx_data").unlink()
    with pytest.raises(edge.ModelFileError, match="weights in model"):
        read_ports(path)


@pytest.mark.parametrize(
    ("data", "found"),
    [(b"", "is no ONNX file"), (b"GGUF\x03", "is no ONNX file"), (None, "cannot")],
)
def test_what_is_no_onnx_file_is_refused(data: bytes | None, found: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(edge.ModelFileError, match=found):
        read_ports(path)


def test_a_file_that_ends_early_is_refused(
    onnx_model: Callable[[str], Path], tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_model("tales-draft").read_bytes()[:-1000])
    with pytest.raises(edge.ModelFileError, match="is no ONNX file, or it is damaged"):
        read_ports(path)


def test_what_cannot_draft_says_what_was_found(
    onnx_model: Callable[[str], Path], tmp_path: Path
) -> None:
    path = onnx_model("tales-draft")

    def without_past(graph: Any) -> None:
        del graph.input[3:]

    with pytest.raises(edge.ModelFileError, match=r"has input_ids, .* text-generation-with-past"):
        read_ports(changed(path, tmp_path, without_past))

    def with_pixels(graph: Any) -> None:
        graph.input[2].name = "pixel_values"

    with pytest.raises(edge.ModelFileError, match="it takes pixel_values"):
        read_ports(changed(path, tmp_path, with_pixels))

    def of_open_width(graph: Any) -> None:
        graph.input[3].type.tensor_type.shape.dim[3].dim_param = "width"

    with pytest.raises(edge.ModelFileError, match="keys and values of 2 shapes"):
        read_ports(changed(path, tmp_path, of_open_width))


# ------------------------------------------------------------------ the vocabulary
def test_tokens_are_those_of_the_gguf(onnx_model: Callable[[str], Path]) -> None:
    path = onnx_model("tales-draft")
    found = OnnxVocabulary(path, onnx_context.load_package("tokenizers"))
    model = LlamaModel(MODELS / "tales-draft.gguf", dry=True)
    known = model.vocabulary
    for text in ("", TALE, "<|im_end|> a", "caf\xe9 \u4e2d 42"):
        assert found.tokenize(text) == known.tokenize(text)
    tokens = range(known.num_tokens)
    assert found.num_tokens == known.num_tokens and found.adds_space == known.adds_space
    assert [found.piece(each) for each in tokens] == [known.piece(each) for each in tokens]
    assert [found.ends(each) for each in tokens] == [known.ends(each) for each in tokens]
    model.close()


def test_bytes_inside_a_character_are_tokens_of_their_own(
    onnx_model: Callable[[str], Path],
) -> None:
    found = OnnxVocabulary(onnx_model("tales-draft"), onnx_context.load_package("tokenizers"))
    for data in (b"a \xc3", b"\xa9 a", b"\xff\xfe", "caf\xe9".encode()):
        assert b"".join(map(found.piece, found.cut(data))) == data


def test_a_tokenizer_is_needed(onnx_model: Callable[[str], Path], tmp_path: Path) -> None:
    tokenizers = onnx_context.load_package("tokenizers")
    path = tmp_path / "onnx" / "model.onnx"
    path.parent.mkdir()
    with pytest.raises(edge.ModelFileError, match=r"no tokenizer\.json beside it"):
        OnnxVocabulary(path, tokenizers)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(edge.ModelFileError, match="is no tokenizer"):
        OnnxVocabulary(path, tokenizers)
    about = json.loads(onnx_model("tales-draft").with_name("tokenizer.json").read_text())
    about["decoder"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(about))
    with pytest.raises(edge.ModelFileError, match="do not stand for bytes"):
        OnnxVocabulary(path, tokenizers)


# --------------------------------------------------------------------- the context
def rows_of(tokens: list[int], first: int = 0, sequence: int = 0) -> list[Row]:
    last = len(tokens) - 1
    return [Row(token, first + idx, sequence, idx == last) for idx, token in enumerate(tokens)]


def test_logits_are_those_of_llama_cpp_and_the_past_is_kept(
    onnx_model: Callable[[str], Path],
) -> None:
    """Q8_0 rounds activations, so that they are close, not equal."""
    model, plain = OnnxModel(onnx_model("tales-draft"), 1), LlamaModel(MODELS / "tales-draft.gguf")
    context, other = OnnxContext(model, SHAPE), LlamaContext(plain, SHAPE)
    tokens = plain.vocabulary.tokenize(TALE)
    for first, behind in ((0, 5), (5, 6), (6, len(tokens))):
        for each in (context, other):
            each.compute(rows_of(tokens[first:behind], first))
        expected = other.borrow_logits()
        distance = np.linalg.norm(context.borrow_logits() - expected)
        assert distance < 0.05 * np.linalg.norm(expected)
    other.close()
    plain.close()


def test_dropped_tokens_leave_the_others_as_they_were(onnx_model: Callable[[str], Path]) -> None:
    context = OnnxContext(OnnxModel(onnx_model("tales-draft"), 1), SHAPE)
    tokens = [0, 200, 300, 400, 500, 600]
    for place, token in enumerate(tokens[:4]):
        context.compute(rows_of([token], place))
    kept, expected = [past.copy() for past in context._held[0]], context.borrow_logits()
    for place, token in enumerate(tokens[4:], start=4):
        context.compute(rows_of([token], place))
    context.compute(rows_of([7, 8], 0, sequence=1))
    context.forget(4)
    assert all(map(np.array_equal, kept, context._held[0]))
    context.forget(3)
    context.compute(rows_of(tokens[3:4], 3))
    assert np.array_equal(context.borrow_logits(), expected)
    assert (context.num_tokens(0), context.num_tokens(1)) == (4, 2)


def test_a_pass_that_fails_appends_nothing(onnx_model: Callable[[str], Path]) -> None:
    context = OnnxContext(OnnxModel(onnx_model("tales-draft"), 1), SHAPE)
    context.compute(rows_of([0, 200]))
    with pytest.raises(edge.HaversackError, match=r"cannot compute model\.onnx"):
        context.compute(rows_of([99_999], 2))
    with pytest.raises(edge.ContextError, match="no room"):
        context.compute(rows_of([0] * 255, 2))
    assert context.num_tokens() == 2


# ------------------------------------------------------------------------ the text
def opened(speculate: str, trunk_dir: Path, share: float | None = None) -> edge.Model:
    planned = edge.plan(edge.builtin_model(), "1GiB", ctx=256, threads=1, batch=64)
    planned = planned if share is None else streamed(planned, share)
    options = edge.LoadOptions(cache_dir=trunk_dir, warm_start=False, speculate=speculate)
    return edge.load(planned, options=options)


SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"max_tokens": 24, "temperature": 0},
    "seed": {"max_tokens": 24, "seed": 4, "repeat_penalty": 1.2},
    "stop": {"max_tokens": 30, "temperature": 0, "stop": (" the ",)},
    "grammar": {
        "max_tokens": 20,
        "temperature": 0,
        "json_schema": '{"type": "object", "properties": {"name": {"enum": ["fox", "hen"]}}}',
    },
}


def texts(model: edge.Model) -> dict[str, Any]:
    found = dict[str, Any]()
    for name, settings in SETTINGS.items():
        generation = model.generate(TALE, **settings)
        text = generation.text, generation.tokens, generation.finish_reason
        held = list(model._loop.latest.tokens)
        model.check_integrity()
        found[name] = (text, held, model.verify(generation.tokens[-1:]).tobytes())
    return found


@pytest.mark.parametrize(("name", "share"), [("tales-twin", 0.25), ("tales-draft", None)])
def test_text_and_logits_are_those_without_drafts(
    name: str, share: float | None, onnx_model: Callable[[str], Path], trunk_dir: Path
) -> None:
    """The twin has the model's vocabulary, the other one its own."""
    with opened("off", trunk_dir) as model:
        expected = texts(model)
    path = onnx_model(name)
    with opened(f"{path}:4", trunk_dir, share) as model:
        assert texts(model) == expected
        assert 0 < model.stats().draft_accepted < model.stats().drafted
        model.speculate(str(path))  # the gate decides
        assert texts(model) == expected


def test_it_drafts_as_the_gguf_does(onnx_model: Callable[[str], Path], trunk_dir: Path) -> None:
    rates = list[float]()
    for path in (onnx_model("tales-twin"), MODELS / "tales-twin.gguf"):
        with opened(f"{path}:4", trunk_dir) as model:
            assert model.generate(TALE, 64, temperature=0).text
            rates.append(model.stats().draft_accepted / model.stats().drafted)
    assert rates[0] == pytest.approx(rates[1], abs=0.1)


def test_an_error_of_the_drafter_costs_no_text(
    onnx_model: Callable[[str], Path], trunk_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened("off", trunk_dir) as model:
        expected = texts(model)
    with opened(f"{onnx_model('tales-twin')}:4", trunk_dir) as model:
        helper: Any = model._loop.speculation._helper
        truly, num_calls = helper.model.model._session.run, [0]

        class Failing:
            def run(self, *arguments: Any) -> Any:
                num_calls[0] += 1
                if num_calls[0] > 3:
                    raise RuntimeError("CUDA error 700\nmore lines")
                return truly(*arguments)

        monkeypatch.setattr(helper.model.model, "_session", Failing())
        assert texts(model) == expected
        assert model.stats().not_drafting.endswith("cannot compute model.onnx: CUDA error 700")


# ------------------------------------------------------------------------ memory
def test_it_is_part_of_the_plan_and_takes_no_more(
    onnx_model: Callable[[str], Path], trunk_dir: Path
) -> None:
    path = onnx_model("tales-draft")
    with opened(str(path), trunk_dir) as model:
        planned, entries = model.plan, {entry.name: entry for entry in model.budget()}
        assert planned.drafter is not None and planned.drafter_bytes == planned.drafter.num_bytes
        assert planned.drafter.weights_bytes == path.stat().st_size
        for name, num_bytes in planned.drafter.parts().items():
            assert entries[name].reserved_bytes == num_bytes
        assert model.generate(TALE, 24, temperature=0).text
        assert model.stats().ram_peak_bytes <= model.stats().ram_planned_bytes


def test_without_room_it_is_refused_with_numbers(onnx_model: Callable[[str], Path]) -> None:
    floor = edge.plan(edge.builtin_model(), "1GiB", ctx=256, threads=1, batch=64).floor_bytes
    planned = edge.plan(edge.builtin_model(), floor, ctx=256, threads=1, batch=64)
    with pytest.raises(edge.BudgetError, match=r"the drafter model.onnx takes .* \(weights"):
        with_drafts(planned, onnx_model("tales-twin"))


def test_one_that_takes_more_than_planned_is_refused_with_numbers(
    onnx_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a session does that keeps its weights in another form."""
    planned, taken = plan_drafter(onnx_model("tales-draft"), SHAPE), iter([0, 1 << 30])
    monkeypatch.setattr(draft_source, "anonymous_bytes", lambda: next(taken))
    with pytest.raises(edge.BudgetError, match=r"takes 1\.0 GiB of memory once it is loaded"):
        DraftModel(planned)


def test_a_missing_package_names_the_extra() -> None:
    with pytest.raises(edge.HaversackError, match=r"pip install 'haversack\[onnx\]'"):
        onnx_context.load_package("onnxruntime_of_another_name")


def test_damaged_weights_are_told_in_one_line(
    onnx_model: Callable[[str], Path], tmp_path: Path
) -> None:
    path = changed(onnx_model("tales-draft"), tmp_path, lambda graph: None)
    tokenizer = onnx_model("tales-draft").with_name("tokenizer.json")
    (tmp_path / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    with pytest.raises(edge.ModelFileError, match="onnxruntime cannot load") as refusal:
        OnnxModel(path, 1)
    assert "\n" not in str(refusal.value)
