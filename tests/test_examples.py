"""The examples run, on the built-in model."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_XVFB = shutil.which("xvfb-run")  # a screen that nobody sees

# Asks in the window as a user does, and ends it once something is answered.
_IN_THE_WINDOW = """
import tkinter, window
from haversack import edge

root = tkinter.Tk()
with edge.load_isolated(edge.builtin_model(), ram="1GiB", ctx=512) as model:
    shown = window.Window(root, model)
    shown._entry.insert(0, "Tell me a story about a fox.")
    shown.ask()

    def look():
        if shown._generation is None:
            print(shown._text.get("1.0", "end"))
            root.destroy()
        else:
            root.after(50, look)

    root.after(50, look)
    root.mainloop()
"""

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


def test_an_example_without_its_package_says_in_one_line_what_to_install() -> None:
    without = "import sys, runpy; sys.modules['pydantic'] = None; runpy.run_path(sys.argv[1])"
    command = [sys.executable, "-c", without, str(EXAMPLES / "character.py")]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 1
    assert found.stderr == "this example needs pydantic: pip install pydantic\n"


@pytest.mark.slow
@pytest.mark.skipif(_XVFB is None, reason="there is no xvfb-run")
def test_the_window() -> None:
    pytest.importorskip("tkinter")
    assert _XVFB is not None
    found = subprocess.run(
        [_XVFB, "-a", sys.executable, "-c", _IN_THE_WINDOW],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES)},
    )
    assert found.returncode == 0, found.stderr
    question, answer = found.stdout.strip().split("\n", 1)
    assert question == "> Tell me a story about a fox." and answer.strip()
