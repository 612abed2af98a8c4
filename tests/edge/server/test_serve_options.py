"""The names by which requests ask for a model."""

from pathlib import Path

import pytest

from haversack.devices.errors import PromptError
from haversack.edge.server.options import ServeOptions


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("models/tales.gguf", "tales"),
        ("models/qwen3-0.6b.Q8_0.gguf", "qwen3-0.6b.Q8_0"),
        ("models/big-00001-of-00003.gguf", "big"),
        ("unsloth/Qwen3-0.6B-GGUF:Q8_0", "unsloth/Qwen3-0.6B-GGUF:Q8_0"),
    ],
)
def test_a_model_is_named_as_its_file_or_as_on_the_hub(model: str, name: str) -> None:
    assert ServeOptions().paths(Path(model)) == {name: Path(model)}


def test_names_must_differ() -> None:
    asked = ServeOptions(also=[Path("a/tales.gguf")])
    with pytest.raises(PromptError, match="the same file name"):
        asked.paths(Path("b/tales.gguf"))
