"""A model's vocabulary: text to token ids and back, and the special tokens."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from haversack.devices import _native as native
from haversack.devices import guard
from haversack.devices._native import llama, own
from haversack.devices.errors import PromptError
from haversack.devices.grammar import TokenTrie
from haversack.devices.tokenizing import LEAST_STACK_BYTES, Tokenizer

_NO_VOCABULARY, _SENTENCEPIECE, _BYTE_PAIRS = 0, 1, 2  # enum llama_vocab_type
_BLANKS = (b" ", b"\t", b"\n", b"\v", b"\f", b"\r")
_SAMPLED_TOKENS = 1024  # of a vocabulary, to estimate how long its texts are
_PIECE = native.llama_function("llama_token_to_piece")


class Vocabulary:
    """A model's tokenizer."""

    def __init__(self, model: Any) -> None:
        self._vocab = llama.llama_model_get_vocab(model)
        self.tokenizer = Tokenizer(self._vocab)
        self.num_tokens = int(llama.llama_vocab_n_tokens(self._vocab))
        self._kind = llama.llama_vocab_type(self._vocab)
        self.has_text = self._kind != _NO_VOCABULARY

    @property
    def is_sentencepiece(self) -> bool:
        """Return whether texts are cut by scores of tokens, not by merges."""
        return bool(self._kind == _SENTENCEPIECE)

    @property
    def address(self) -> Any:
        return self._vocab

    def tokenize(
        self, text: str, *, add_special: bool = True, most_stack_bytes: int = LEAST_STACK_BYTES
    ) -> list[int]:
        """Return the token ids of `text`; special tokens written out in it count as such.

        `add_special` puts the start token first if the model wants one and the text does not begin
        with it. No end token is added, because text would be generated after the end. Raises
        PromptError without a vocabulary, and see `Tokenizer.tokens`.
        """
        if not self.has_text:
            raise PromptError("the model has no vocabulary: give token ids, not text")
        found = self.tokenizer.tokens(text.encode(), most_stack_bytes)
        start = int(llama.llama_vocab_bos(self._vocab))
        if add_special and llama.llama_vocab_get_add_bos(self._vocab) and found[:1] != [start]:
            found.insert(0, start)
        return found

    def cut(self, data: bytes) -> list[int]:
        """Return the token ids of UTF-8 that may begin or end inside a character, without a start
        token; raises as `Tokenizer.tokens`."""
        return self.tokenizer.tokens(data, LEAST_STACK_BYTES)

    def least_tokens(self, text: str) -> int:
        """Return the least number of tokens of `text`, by its length and that of the longest token.

        Blanks do not count, because some special tokens include the blanks beside them. It is 0 for
        vocabularies that change texts before they split them.
        """
        if self._kind not in (_SENTENCEPIECE, _BYTE_PAIRS):
            return 0
        data = text.encode()
        num_bytes = len(data) - sum(map(data.count, _BLANKS))
        return -(-num_bytes // max(1, self._longest_bytes))

    @cached_property
    def _longest_bytes(self) -> int:
        return int(own.longest_piece(_PIECE, self._vocab, self.num_tokens))

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Return the bytes of one token; none for a special token, unless `special`."""
        assert self.has_text and 0 <= token < self.num_tokens, f"no token {token} has text"
        room = 64
        while True:
            buffer = bytes(room)
            count = guard.token_to_piece(self._vocab, token, buffer, special)
            guard.check_failure()
            if count >= 0:
                return buffer[:count]
            room = -count

    def special_texts(self, text: str) -> set[str]:
        """Return the special tokens that are written out in `text`."""
        tokens = self.tokenize(text, add_special=False) if self.has_text else []
        special = (self.piece(token, special=True) for token in tokens if not self.piece(token))
        return {piece.decode(errors="replace") for piece in special if piece}

    def ends(self, token: int) -> bool:
        """Return whether `token` ends a generation."""
        return bool(llama.llama_vocab_is_eog(self._vocab, token))

    @property
    def adds_space(self) -> bool:
        """Return whether the vocabulary puts a space before every text, as SentencePiece ones
        do."""
        return self._adds_space

    @cached_property
    def _adds_space(self) -> bool:
        pieces = map(self.piece, self.tokenize("a", add_special=False))
        return b"".join(pieces).startswith(b" ")

    @property
    def bos(self) -> str:
        """Return the text of the start token, or ''."""
        return self._special(llama.llama_vocab_bos(self._vocab))

    @property
    def eos(self) -> str:
        """Return the text of the end token, or ''."""
        return self._special(llama.llama_vocab_eos(self._vocab))

    def _special(self, token: int) -> str:
        return "" if token < 0 else self.piece(token, special=True).decode(errors="replace")

    @cached_property
    def trie(self) -> TokenTrie:
        """Return the vocabulary ordered for grammars; it is built at first use and freed with the
        model. Raises PromptError without a vocabulary."""
        if not self.has_text:
            raise PromptError("the model has no vocabulary: it cannot follow a grammar")
        return TokenTrie(_Texts(self), list(filter(self.ends, range(self.num_tokens))))

    def text_bytes(self) -> int:
        """Return about how many bytes the texts of all tokens have, by a sample of them."""
        if not self.has_text:
            return 0
        step = max(1, self.num_tokens // _SAMPLED_TOKENS)
        return step * sum(len(self.piece(token)) for token in range(0, self.num_tokens, step))

    def close(self) -> None:
        """Wait until nothing uses the model's vocabulary, and free what was built from it; may be
        called twice."""
        self.tokenizer.settle()
        self.__dict__.pop("trie", None)


class _Texts(Sequence[bytes]):
    """The bytes that each token adds to the text."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary

    def __len__(self) -> int:
        return self._vocabulary.num_tokens

    def __getitem__(self, token: Any) -> Any:
        if not 0 <= token < len(self):
            raise IndexError(token)
        return self._vocabulary.piece(token)
