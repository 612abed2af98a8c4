"""The vocabulary of a decoder in an ONNX file: the tokenizer.json that optimum puts beside it."""

import json
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from haversack.devices.errors import ModelFileError

_FILE = "tokenizer.json"
_CONFIGS = ("generation_config.json", "config.json")  # of the model, where it lies beside
_ENDS = {"</s>", "<|endoftext|>", "<|im_end|>", "<eos>", "<|eot_id|>", "<end_of_turn>", "<|end|>"}
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_BLANK = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's
_ESCAPED = re.compile("[\udc80-\udcff]+")  # bytes that are no UTF-8, as `surrogateescape` has them


def tokenizer_path(model: Path) -> Path:
    """Return the path of the model's tokenizer, beside it or in the folder above. Raises
    ModelFileError."""
    for folder in (model.parent, model.parent.parent):
        if (folder / _FILE).is_file():
            return folder / _FILE
    raise ModelFileError(
        f"{model.name} has no {_FILE} beside it: put that of the model into {model.parent}"
    )


def setting(tokenizer: Path, key: str) -> Any:
    """Return what the configuration of the model beside a tokenizer says; None for nothing. Raises
    ModelFileError."""
    for name in _CONFIGS:
        path = tokenizer.with_name(name)
        if path.is_file():
            try:
                about = json.loads(path.read_bytes())
            except ValueError as error:
                raise ModelFileError(f"{path} is no JSON: {error}") from error
            if isinstance(about, dict) and about.get(key) is not None:
                return about[key]
    return None


class OnnxVocabulary:
    """As `Vocabulary`, of a tokenizer.json beside a model or in the folder above."""

    def __init__(self, model: Path, tokenizers: Any) -> None:
        """`tokenizers` is the package of that name. Raises ModelFileError if there is no tokenizer,
        or one whose tokens do not stand for bytes of a text."""
        found = tokenizer_path(model)
        self.path, self.has_text = found, True
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(found))
            about = json.loads(found.read_bytes())
        except Exception as error:  # of the package's own, which derives from Exception alone
            raise ModelFileError(f"{found} is no tokenizer: {error}") from error
        self._is_byte_level = _names(about.get("decoder")) & {"ByteLevel"} != set()
        if not self._is_byte_level and not about.get("model", {}).get("byte_fallback"):
            raise ModelFileError(
                f"{found}: its tokens do not stand for bytes (neither ByteLevel nor byte_fallback),"
                " so that a text cannot be followed: give another drafter"
            )
        self.num_tokens = int(self._tokenizer.get_vocab_size(with_added_tokens=True))
        self._special = {
            each["id"] for each in about.get("added_tokens", ()) if each.get("special")
        }
        self._ends = self._end_tokens()
        self._bytes = {piece[0]: token for token, piece in self._single_bytes()}

    def _end_tokens(self) -> set[int]:
        found = {token for token in map(self._tokenizer.token_to_id, _ENDS) if token is not None}
        ids = setting(self.path, "eos_token_id")
        return found | set(ids if isinstance(ids, list) else [] if ids is None else [ids])

    def _single_bytes(self) -> Iterator[tuple[int, bytes]]:
        names = [*map(_byte_name, range(256))] if self._is_byte_level else []
        for byte in range(256):
            name = names[byte] if names else f"<0x{byte:02X}>"
            token = self._tokenizer.token_to_id(name)
            if token is not None:
                yield token, bytes([byte])

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """As `Vocabulary.piece`; none for a number without a token."""
        text = self._tokenizer.id_to_token(token)
        if text is None or (token in self._special and not special):
            return b""
        if token in self._special:
            return str(text).encode()
        if self._is_byte_level:
            known = _BYTE_OF
            if all(each in known for each in text):
                return bytes(known[each] for each in text)
            return str(text).encode()  # an added token
        byte = _BYTE.fullmatch(text)
        return bytes([int(byte[1], 16)]) if byte else str(text).replace(_BLANK, " ").encode()

    def ends(self, token: int) -> bool:
        """As `Vocabulary.ends`."""
        return token in self._ends

    def tokenize(self, text: str, *, add_special: bool = True) -> list[int]:
        """As `Vocabulary.tokenize`."""
        return [*(self._start if add_special else ()), *self._encoded(text)]

    def _encoded(self, text: str, *, special: bool = False) -> list[int]:
        found: list[int] = self._tokenizer.encode(text, add_special_tokens=special).ids
        return found

    @cached_property
    def _start(self) -> list[int]:
        """The tokens that stand before every text."""
        whole, text = self._encoded("a", special=True), self._encoded("a")
        places = range(len(whole) - len(text) + 1)
        return whole[: next((at for at in places if whole[at : at + len(text)] == text), 0)]

    def cut(self, data: bytes) -> list[int]:
        """As `Vocabulary.cut`: bytes that are no UTF-8 become the tokens of single bytes."""
        text, found, begin = data.decode(errors="surrogateescape"), list[int](), 0
        for match in (*_ESCAPED.finditer(text), None):
            end = len(text) if match is None else match.start()
            if end > begin:
                found += self._encoded(text[begin:end])
            if match is not None:
                lone = match[0].encode(errors="surrogateescape")
                found += [self._bytes[byte] for byte in lone if byte in self._bytes]
                begin = match.end()
        return found

    @property
    def adds_space(self) -> bool:
        """As `Vocabulary.adds_space`."""
        return self._adds_space

    @cached_property
    def _adds_space(self) -> bool:
        pieces = map(self.piece, self._encoded("a"))
        return b"".join(pieces).startswith(b" ")


def _names(decoder: Mapping[str, Any] | None) -> set[str]:
    """Return the kinds of a decoder and of those that it consists of."""
    if not decoder:
        return set()
    return {str(decoder.get("type"))}.union(*map(_names, decoder.get("decoders", ())))


def _byte_name(byte: int) -> str:
    """Return the character that stands for a byte in byte-level vocabularies: its own, if it can be
    seen, else the next one behind Latin-1."""
    return chr(byte) if byte in _SEEN else chr(256 + _HIDDEN.index(byte))


_SEEN = frozenset({*range(33, 127), *range(161, 173), *range(174, 256)})
_HIDDEN = [byte for byte in range(256) if byte not in _SEEN]
_BYTE_OF = {_byte_name(byte): byte for byte in range(256)}
