"""The trained dense models that tests of drafting need: they load, know English, and differ."""

import re
from pathlib import Path

import pytest

from haversack import edge
from haversack.tools.training.export import load_gguf

MODELS = Path(__file__).parents[2] / "data" / "models"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "vocab_size"), [("tales-twin", 4096), ("tales-draft", 2048)])
def test_it_writes_words(name: str, vocab_size: int) -> None:
    with edge.load(MODELS / f"{name}.gguf", ram="1TiB", ctx=256, threads=1) as model:
        texts = [
            model.generate("Once upon a time", max_tokens=30, temperature=0.8, seed=seed).text
            for seed in range(8)
        ]
    words = re.findall("[a-z]+", " ".join(texts).lower())
    assert len(set(words)) > 25
    assert {"the", "and", "a"} <= set(words)
    assert len(load_gguf(MODELS / f"{name}.gguf")[1]) == vocab_size


def test_the_twin_has_the_vocabulary_of_the_built_in_model_and_the_draft_another() -> None:
    built_in = load_gguf(edge.builtin_model())[1]
    texts = ["A fox and a crow met at the well.", "Very well, thank you."]
    twin, draft = (load_gguf(MODELS / f"tales-{name}.gguf")[1] for name in ("twin", "draft"))
    for text in texts:
        assert twin.encode(text) == built_in.encode(text)
        assert draft.encode(text) != built_in.encode(text)
