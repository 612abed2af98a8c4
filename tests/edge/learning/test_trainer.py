"""Learning: what torch computes is what llama.cpp does, and lessons make the drafter right more
often."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from haversack import edge
from haversack.cache.cross_vocab import PairStore
from haversack.devices.adapter import Adapter
from haversack.devices.errors import ModelFileError
from haversack.devices.llama import ContextShape, LlamaContext, Row
from haversack.devices.llama_model import LlamaModel
from haversack.edge.draft_text import Vocabularies
from haversack.edge.learning.adapter_file import read_adapter, write_adapter
from haversack.edge.learning.decoder import AdaptedDecoder
from haversack.edge.learning.decoder_file import read_decoder
from haversack.edge.learning.lessons import Lesson, Maker, likely
from haversack.edge.learning.trainer import Trainer
from haversack.edge.sequence import Logits
from haversack.tools.models import synth
from haversack.tools.models.architectures import TinyShape, tiny_metadata
from haversack.tools.models.authoring import quantize_rows, random_model
from haversack.tools.models.gguf_stream import TensorPlan, write_gguf
from haversack.tools.models.synth import random_values, write_tiny

DRAFTER = Path(__file__).parents[2] / "data" / "models" / "tales-draft.gguf"
TALES = ["Once upon a time there was a", "The old king said to his", "A hen and a", "One day a fox"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def louder(decoder: AdaptedDecoder) -> None:
    """Have it say something else than before."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for values in decoder.parameters():
            values += 0.02 * torch.randn(values.shape, generator=generator)


@torch.no_grad()
def torch_logits(decoder: AdaptedDecoder, tokens: list[int]) -> Logits:
    found = decoder.logits(torch.tensor(tokens), torch.tensor([len(tokens) - 1]))
    logits: Logits = found[0].numpy()
    return logits


def llama_logits(path: Path, tokens: list[int], adapter: Path | None = None) -> Logits:
    model, changed = LlamaModel(path), Adapter()
    context = LlamaContext(model, ContextShape(64, 32, 1))
    if adapter is not None:
        changed.use(model.address, context.address, adapter)
    last = len(tokens) - 1
    context.compute([Row(token, idx, 0, idx == last) for idx, token in enumerate(tokens)])
    found = context.logits()
    context.close()
    changed.close()
    model.close()
    return found


def distance(found: Logits, expected: Logits) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_llama_cpp_computes_what_was_learnt(tmp_path: Path) -> None:
    """Both round activations their own way."""
    decoder = AdaptedDecoder(read_decoder(DRAFTER))
    tokens = [0, *range(200, 220)]
    before = llama_logits(DRAFTER, tokens)
    assert distance(torch_logits(decoder, tokens), before) < 0.05
    louder(decoder)
    path = tmp_path / "learnt.adapter"
    write_adapter(path, decoder.decoder.architecture, "a pair", decoder.changes())
    after = llama_logits(DRAFTER, tokens, path)
    assert distance(torch_logits(decoder, tokens), after) < 0.05 < distance(before, after)
    again = AdaptedDecoder(read_decoder(DRAFTER))
    again.adopt(read_adapter(path, "a pair"))
    assert distance(torch_logits(again, tokens), torch_logits(decoder, tokens)) < 1e-3
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ModelFileError, match="cannot read the adapter"):
        llama_logits(DRAFTER, tokens, path)


def write_dense_llama(path: Path) -> None:
    """A random model of the architecture llama without experts and scaled positions."""
    none = {"llama.expert_count": 0, "llama.expert_used_count": 0}
    metadata = {**tiny_metadata("llama", TinyShape()), **none}
    source = path.with_name("source.gguf")
    random_model(metadata, partial(random_values, 0), source)
    found, biases = synth._read_tensors(source), ("attn_q.bias", "attn_k.bias", "attn_v.bias")
    tensors = {
        name: data
        for name, data in found.items()
        if name.endswith((".weight", *biases)) and "rope" not in name
    }
    plans = [TensorPlan(name, data.shape, "F32") for name, data in tensors.items()]
    write_gguf(path, metadata, plans, lambda plan: iter([quantize_rows(tensors[plan.name], "F32")]))


def test_rows_of_a_paired_architecture_are_written_in_the_files_order(tmp_path: Path) -> None:
    path = tmp_path / "llama.gguf"
    write_dense_llama(path)
    decoder, tokens = AdaptedDecoder(read_decoder(path)), [1, 7, 30, 8, 31, 9]
    louder(decoder)
    adapter = tmp_path / "learnt.adapter"
    write_adapter(adapter, "llama", "a pair", decoder.changes())
    assert distance(torch_logits(decoder, tokens), llama_logits(path, tokens, adapter)) < 0.01


def test_other_architectures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="is qwen3moe: only llama, qwen2, qwen3"):
        read_decoder(edge.builtin_model())
    with pytest.raises(ModelFileError, match="has blk"):
        read_decoder(write_tiny("llama", tmp_path / "llama.gguf")[0])


@pytest.fixture(scope="module")
def lessons() -> list[Lesson]:
    options = edge.LoadOptions(speculate="off", warm_start=False)
    drafter, found = LlamaModel(DRAFTER, dry=True), list[Lesson]()
    with edge.load(edge.builtin_model(), "1GiB", ctx=256, threads=1, options=options) as model:
        target = model._loop.engine.model.vocabulary
        maker = Maker(Vocabularies(target, drafter.vocabulary, PairStore()))
        for tale in TALES:
            generation = model.generate(tale, 40, temperature=0)
            assert generation.text
            given = model.tokenize(tale)
            text = [*given, *generation.tokens]
            rows = [likely(row) for row in model.iter_logits(text[:-1], len(given))]
            lesson = maker.made(text, rows)
            assert lesson is not None
            found.append(lesson)
    drafter.close()
    return found


def test_what_was_learnt_makes_it_right_more_often(lessons: list[Lesson]) -> None:
    trainer = Trainer(AdaptedDecoder(read_decoder(DRAFTER)))
    trainer.held_out.extend(lessons)
    before, same = trainer.right_before_and_after()
    assert before == same  # nothing was learnt
    for _ in range(12):
        trainer.step(lessons)
    unchanged, after = trainer.right_before_and_after()
    assert unchanged == before < after and trainer.num_steps == 12


def test_some_lessons_are_kept_to_measure_on(lessons: list[Lesson]) -> None:
    trainer = Trainer(AdaptedDecoder(read_decoder(DRAFTER)))
    taken = [trainer.take(lessons[number % len(lessons)]) for number in range(10)]
    assert taken.count(False) == 2 == len(trainer.held_out) and trainer.can_measure
    assert trainer.num_steps == 8
