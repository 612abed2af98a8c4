import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack.devices.errors import PromptError
from haversack.edge.text import TextStream, without_mark

LETTERS = "ab€😀"  # few, so that stop strings occur and overlap
SMALL_TEXT = st.text(LETTERS, max_size=12)
STOPS = st.lists(st.text(LETTERS, min_size=1, max_size=4), max_size=3)
unhurried = settings(deadline=None)  # other programs may hold the processor
CUTS = st.lists(st.integers(0, 60), max_size=8)


def pieces(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    places = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(places)]


def streamed(data: bytes, cuts: Sequence[int], stop: Sequence[str] = ()) -> tuple[str, str | None]:
    stream = TextStream(stop)
    text = "".join([stream.push(piece) for piece in pieces(data, cuts)])
    return text + stream.finish(), stream.stopped


def expected(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """The same by trying every end: the first complete stop string, the longest of those."""
    for end_idx in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end_idx].endswith(stop)]
        if ending:
            longest = max(ending, key=len)
            return text[: end_idx - len(longest)], longest
    return text, None


@unhurried
@given(text=st.text(), cuts=CUTS)
def test_any_split_gives_the_text(text: str, cuts: list[int]) -> None:
    assert streamed(text.encode(), cuts) == (text, None)


@unhurried
@given(data=st.binary(max_size=40), cuts=CUTS)
def test_any_bytes_become_what_python_decodes(data: bytes, cuts: list[int]) -> None:
    assert streamed(data, cuts) == (data.decode("utf-8", errors="replace"), None)


@unhurried
@given(text=SMALL_TEXT, stops=STOPS, cuts=CUTS)
def test_any_stop_string_is_found_at_any_split(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    assert streamed(text.encode(), cuts, stops) == expected(text, stops)


@unhurried
@given(text=SMALL_TEXT, stops=STOPS, cuts=CUTS)
def test_shown_text_never_has_to_be_taken_back(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    stream, shown = TextStream(stops), ""
    for piece in pieces(text.encode(), cuts):
        shown += stream.push(piece)
        assert expected(text, stops)[0].startswith(shown)


def test_characters_are_not_cut() -> None:
    stream = TextStream()
    shown = [stream.push(bytes([byte])) for byte in "a😀é".encode()]
    assert shown == ["a", "", "", "", "😀", "", "é"]


def test_invalid_bytes_become_replacement_characters() -> None:
    stream = TextStream()
    assert stream.push(b"a\xff\xc3") == "a\ufffd"
    assert stream.push(b"(") == "\ufffd("
    assert stream.push(b"\xf0\x9f") == ""
    assert stream.finish() == "\ufffd"
    assert stream.finish() == ""


def test_a_start_of_a_stop_string_is_held_back() -> None:
    stream = TextStream(["</s>"])
    assert stream.push(b"a<") == "a"
    assert stream.push(b"/") == ""
    assert stream.push(b"b</s") == "</b"
    assert stream.finish() == "</s"
    assert stream.stopped is None


def test_a_stop_string_ends_the_text() -> None:
    stream = TextStream(["\nUser:"])
    assert stream.push(b"Hello.\nUs") == "Hello."
    assert stream.push(b"er: more") == ""
    assert stream.stopped == "\nUser:"
    assert stream.push(b"more") == stream.finish() == ""


@pytest.mark.parametrize(
    ("text", "stop", "result"),
    [
        ("xabc", ["ab", "abc"], ("x", "ab")),
        ("xabc", ["abc", "ab"], ("x", "ab")),
        ("xabc", ["abc", "b"], ("xa", "b")),
        ("xabc", ["bc", "abc"], ("x", "abc")),
        ("aab", ["ab"], ("a", "ab")),
        ("a😀b", ["😀"], ("a", "😀")),
        ("abab", ["abc"], ("abab", None)),
    ],
)
def test_overlapping_stop_strings(
    text: str, stop: list[str], result: tuple[str, str | None]
) -> None:
    assert streamed(text.encode(), range(len(text.encode())), stop) == result
    assert streamed(text.encode(), [], stop) == result


@pytest.mark.parametrize("stop", ["ab", [""], ["a", ""]])
def test_stop_strings_are_checked(stop: Sequence[str]) -> None:
    with pytest.raises(PromptError, match="non-empty strings"):
        TextStream(stop)


# -------------------------------------------------------------- special tokens
def shown(
    stops: list[str], specials: list[str], pieces: list[bytes | str]
) -> tuple[str, str | None]:
    """The text of pieces, of which those that are no bytes are special tokens."""
    stream, text = TextStream(stops, specials), ""
    for piece in pieces:
        text += stream.push(b"", piece) if isinstance(piece, str) else stream.push(piece)
    return text + stream.finish(), stream.stopped


@pytest.mark.parametrize(
    ("stop", "result"),
    [
        ("<|end|>", ("one", "<|end|>")),
        ("<|end|>\n", ("one", "<|end|>\n")),
        ("ne<|end|>", ("o", "ne<|end|>")),
        ("<|end|><|start|>", ("one\ntwo", "<|end|><|start|>")),
        ("\ntwo<|end|>", ("one", "\ntwo<|end|>")),
        ("<|start|>", ("one\ntwo", "<|start|>")),
        ("e\nt", ("on", "e\nt")),  # nothing is shown of the token between
        ("end", ("one\ntwothree", None)),  # a part of its name is no text
        ("<|", ("one\ntwothree", None)),
    ],
)
def test_a_stop_string_may_hold_special_tokens(stop: str, result: tuple[str, str | None]) -> None:
    specials = [name for name in ("<|end|>", "<|start|>") if name in stop]
    pieces: list[bytes | str] = [b"one", "<|end|>", b"\ntwo", "<|end|>", "<|start|>", b"three"]
    assert shown([stop], specials, pieces) == result
    assert shown([stop, "zzz", "<|other|>"], [*specials, "<|other|>"], pieces) == result


def test_a_special_token_in_the_middle_of_a_character() -> None:
    assert shown(["<s>x"], ["<s>"], [b"\xc3", "<s>", b"\xa9x"]) == ("éx", None)


def test_a_special_token_that_begins_a_stop_string_is_held_back() -> None:
    stream = TextStream(["<s>ab"], ["<s>"])
    assert stream.push(b"x", "<s>") == "x"
    assert stream.push(b"a") == ""
    assert stream.push(b"c") == "ac"


def test_the_byte_order_mark() -> None:
    assert without_mark("\ufeffa\ufeff") == "a\ufeff"
    assert without_mark("a") == "a"
