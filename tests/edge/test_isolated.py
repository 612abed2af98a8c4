"""Models in a child process: what they do, and what is left when the child dies."""

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from haversack import edge
from haversack.devices.errors import AbortedError, BudgetError, ClosedError, PromptError

TinyModel = Callable[..., Path]


@pytest.fixture(scope="module")
def model() -> Iterator[edge.IsolatedModel]:
    with edge.load_isolated(edge.builtin_model(), ram="2GiB", ctx=512) as found:
        yield found


def test_it_writes_what_a_model_here_writes(model: edge.IsolatedModel) -> None:
    with edge.load(edge.builtin_model(), ram="2GiB", ctx=512) as here:
        expected = here.generate("Once upon a time", 20, temperature=0)
        text, expected_ids = "".join(expected), here.tokenize("Once upon")
        expected_vector = here.embed("Once upon")
    generation = model.generate("Once upon a time", 20, temperature=0)
    assert "".join(generation) == text == generation.text
    assert generation.tokens == expected.tokens and generation.finish_reason == "length"
    assert generation.prompt_tokens == expected.prompt_tokens
    assert generation.stats is not None and expected.stats is not None
    assert generation.stats.tokens == expected.stats.tokens
    assert model.tokenize("Once upon") == expected_ids
    assert np.array_equal(model.embed("Once upon"), expected_vector)
    assert np.array_equal(model.embed("Once upon"), expected_vector)


def test_its_memory_is_its_own(model: edge.IsolatedModel) -> None:
    assert model.process_id != os.getpid()
    assert sum(entry.reserved_bytes for entry in model.budget()) == model.plan.ram_bytes
    assert model.stats().ram_peak_bytes > 0
    model.check_integrity()


def test_its_texts_are_kept_and_brought_back(model: edge.IsolatedModel, tmp_path: Path) -> None:
    text = model.generate("The old king had three daughters", 8, temperature=0).text
    num_tokens = model.save_kv(tmp_path / "king.kv")
    assert model.generate("A fox", 2, temperature=0).text
    assert model.load_kv(tmp_path / "king.kv") == num_tokens
    again = model.generate("The old king had three daughters" + text, 1, temperature=0)
    assert again.text is not None and again.stats is not None
    assert again.stats.prompt_tokens < again.prompt_tokens / 2
    with pytest.raises(edge.StorageError, match="cannot read"):
        model.load_kv(tmp_path / "none.kv")


def test_errors_are_those_of_a_model_here(model: edge.IsolatedModel) -> None:
    with pytest.raises(PromptError, match="max_tokens is -1"):
        model.generate("x", -1)
    with pytest.raises(BudgetError) as refused:
        edge.load_isolated(edge.builtin_model(), ram="1MiB")
    assert refused.value.need_bytes > refused.value.have_bytes == 2**20


def test_a_generation_can_be_cancelled(model: edge.IsolatedModel) -> None:
    generation = model.generate("Once upon a time", temperature=0)
    next(generation)
    generation.cancel()
    list(generation)
    assert generation.finish_reason == "cancelled"


def test_a_dropped_generation_lets_go_of_the_model(model: edge.IsolatedModel) -> None:
    whole = model.generate("Once upon a time", 8, temperature=0).text
    dropped = model.generate("Once upon a time", temperature=0)
    next(dropped)
    del dropped
    with model.generate("Once upon a time", temperature=0) as closed:
        next(closed)
    assert closed.finish_reason == "cancelled" and list(closed) == []
    assert model.generate("Once upon a time", 8, temperature=0).text == whole


def test_several_at_once_and_async(model: edge.IsolatedModel) -> None:
    async def text_of(prompt: str) -> str:
        return "".join([piece async for piece in model.generate(prompt, 8, temperature=0)])

    async def both() -> list[str]:
        return list(await asyncio.gather(text_of("The fox"), text_of("The king")))

    alone = [model.generate(p, 8, temperature=0).text for p in ("The fox", "The king")]
    assert asyncio.run(both()) == alone


@pytest.mark.parametrize("signal_number", [signal.SIGABRT, signal.SIGKILL])
def test_a_crash_is_one_error_and_the_model_can_be_loaded_again(
    signal_number: signal.Signals, tiny_model: TinyModel
) -> None:
    path, found = tiny_model(), list[BaseException]()

    def read(model: edge.IsolatedModel) -> None:
        try:
            for _ in range(10_000):
                _ = model.generate([1, 2, 3], 200).text
        except AbortedError as error:
            found.append(error)

    with edge.load_isolated(path, ram="1GiB", ctx=256) as model:
        thread = threading.Thread(target=read, args=(model,))
        thread.start()
        os.kill(model.process_id, signal_number)
        thread.join(60)
        assert not thread.is_alive()
        assert signal_number.name in str(found[0]) and "load the model again" in str(found[0])
        with pytest.raises(AbortedError):
            model.stats()
    with edge.load_isolated(path, ram="1GiB", ctx=256) as again:
        assert again.generate([1, 2, 3], 4).text


def test_a_closed_model_says_so(tiny_model: TinyModel) -> None:
    model = edge.load_isolated(tiny_model(), ram="1GiB", ctx=256)
    model.close()
    model.close()
    with pytest.raises(ClosedError, match="load it again"):
        model.stats()


def test_progress_is_told(tiny_model: TinyModel) -> None:
    told = list[str]()
    options = edge.LoadOptions(progress=lambda what, _: told.append(what))
    with edge.load_isolated(tiny_model(), ram="1GiB", ctx=256, options=options):
        assert "loading" in told
