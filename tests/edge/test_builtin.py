"""The model that comes with haversack: small, quick to start, and streamed like a big one."""

import json
import re
import statistics
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from haversack import edge
from haversack.devices.ggml import GgufHeader

CARD = edge.builtin_model().parent / "README.md"
SAMPLES = Path(__file__).parents[2] / "tools" / "training" / "samples.json"
TIGHT = "96MiB"
STORY = [{"role": "user", "content": "Tell me a story about a fox and a crow."}]
MOST_BYTES = 64 * 1024 * 1024


def test_it_is_a_small_one_with_the_structure_of_the_big_ones() -> None:
    path = edge.builtin_model()
    assert path.stat().st_size <= MOST_BYTES
    with GgufHeader(path) as header:
        assert header.value("general.architecture") == "qwen3moe"
        assert int(str(header.value("qwen3moe.block_count"))) >= 8
        assert int(str(header.value("qwen3moe.expert_count"))) >= 32
        assert int(str(header.value("qwen3moe.expert_used_count"))) >= 4
        assert header.value("general.license") == "cc-by-sa-4.0"


@pytest.mark.slow
def test_a_tight_budget_streams_it_and_changes_no_token(trunk_dir: Path) -> None:
    """96 MiB hold the process and a part of the experts; the text is that of all in memory."""
    command = [sys.executable, "-m", "haversack.edge", "run", "-p", "The fox", "-n", "60"]
    command += ["--temp", "0", "--json", "--cache-dir", str(trunk_dir)]
    found = {
        ram: json.loads(
            subprocess.run(
                [*command, "--ram", ram], capture_output=True, check=True, timeout=300
            ).stdout
        )
        for ram in (TIGHT, "1GiB")
    }
    streamed, resident = found[TIGHT], found["1GiB"]
    assert (streamed["mode"], resident["mode"]) == ("streamed", "resident")
    assert streamed["token_ids"] == resident["token_ids"]
    assert streamed["misses"] > 100 and streamed["hits"] > 100
    assert streamed["ram_peak_bytes"] <= streamed["ram_budget_bytes"]


@pytest.mark.slow
def test_a_story_has_sentences_about_what_was_asked() -> None:
    with edge.load(edge.builtin_model(), ram="1GiB", threads=1) as model:
        stories = [
            model.chat(STORY, max_tokens=150, temperature=0.7, top_p=0.9, seed=seed).text
            for seed in range(24)
        ]
    # Three of four name one of both, and the median has five, with any processor's rounding.
    assert statistics.median(len(re.findall(r"[.!?]", story)) for story in stories) >= 3
    assert sum("fox" in story.lower() or "crow" in story.lower() for story in stories) >= 8


def test_a_chat_imports_nothing_that_it_does_not_use() -> None:
    """Imports are most of a chat's first second; one big package more would double them."""
    used = {"annotated_doc", "haversack", "jinja2", "markupsafe", "numpy", "platformdirs", "psutil"}
    used |= {"rich", "shellingham", "typer", "typing_extensions"}
    command = [sys.executable, "-X", "importtime", "-m", "haversack.edge", "chat", "--ram", TIGHT]
    done = subprocess.run(
        command, input="", capture_output=True, check=True, timeout=300, text=True
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    imported = {line.rsplit("|", 1)[1].strip() for line in lines}
    installed = {name for name in packages_distributions() if not name.startswith("_")}
    assert {name.split(".")[0] for name in imported} & installed <= used
    assert len(imported) < 700


def test_the_card_shows_every_sample_prompt_and_says_what_matters() -> None:
    card = CARD.read_text(encoding="utf-8")
    for prompt in json.loads(SAMPLES.read_text())["prompts"]:
        assert f"**{prompt}**" in card
    for word in ("Licence", "Data", "Recipe", "seed", "tokens", "Limits", "perplexity"):
        assert word in card, word
