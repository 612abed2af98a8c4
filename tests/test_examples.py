"""The examples run, on the built-in model."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "said"), [("character.py", "name="), ("service.py", "Tell me about the sea.")]
)
def test_example(name: str, said: str) -> None:
    if name == "character.py":
        pytest.importorskip("pydantic")
    found = subprocess.run(
        [sys.executable, str(EXAMPLES / name)], capture_output=True, text=True, timeout=300
    )
    assert found.returncode == 0, found.stderr
    assert said in found.stdout
