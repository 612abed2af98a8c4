"""The byte-pair vocabulary of the trained models, and its form in a GGUF.

Pieces are like those of GPT-2: bytes are written as characters, and text is first cut by GPT-2's
pattern. So llama.cpp, told "gpt2" and "gpt-2", cuts every text into the same ids.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from haversack.tools.models.gguf_stream import Value

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_PIECES = (END_OF_TEXT, TURN_START, TURN_END)
END_OF_TEXT_ID, TURN_START_ID, TURN_END_ID = range(3)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_SPECIAL = re.compile("|".join(map(re.escape, SPECIAL_PIECES)))
_NORMAL, _CONTROL = 1, 3  # llama.cpp's token types


class Vocabulary:
    """Text to ids and back. `train` makes a vocabulary, `save` and `load` keep it as a
    tokenizer.json."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @classmethod
    def train(cls, texts: Iterable[str], size: int) -> "Vocabulary":
        """Return the `size` pieces that shorten `texts` most; equal texts give equal pieces.

        Raises ValueError if the texts are too few for so many.
        """
        tokenizers = import_module("tokenizers")
        tokenizer = _byte_level(tokenizers.models.BPE())
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=list(SPECIAL_PIECES),
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        plain = (part for text in texts for part in _SPECIAL.split(text) if part)
        tokenizer.train_from_iterator(plain, trainer)
        if (found := tokenizer.get_vocab_size()) < size:
            raise ValueError(f"the text gives {found} pieces, not {size}: ask for fewer")
        return cls(tokenizer)

    @classmethod
    def load(cls, path: Path) -> "Vocabulary":
        """Load what `save` wrote."""
        return cls(import_module("tokenizers").Tokenizer.from_file(str(path)))

    @classmethod
    def of_pieces(cls, pieces: Sequence[str], merges: Sequence[str]) -> "Vocabulary":
        """Return the vocabulary of the pieces, in the order of their ids, and merges of a GGUF."""
        tokenizers = import_module("tokenizers")
        ids = {piece: i for i, piece in enumerate(pieces)}
        pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
        tokenizer = _byte_level(tokenizers.models.BPE(vocab=ids, merges=pairs))
        tokenizer.add_special_tokens(list(SPECIAL_PIECES))
        return cls(tokenizer)

    def save(self, path: Path) -> None:
        """Write a tokenizer.json."""
        self._tokenizer.save(str(path))

    def __len__(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, in which special pieces are recognised."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, computed on all cores."""
        return [e.ids for e in self._tokenizer.encode_batch(texts, add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, special pieces included."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def metadata(self) -> dict[str, Value]:
        """Return the key-values of a GGUF."""
        model = json.loads(self._tokenizer.to_str())["model"]
        pieces = sorted(model["vocab"], key=lambda piece: int(model["vocab"][piece]))
        merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
        types = [_CONTROL if piece in SPECIAL_PIECES else _NORMAL for piece in pieces]
        return {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": pieces,
            "tokenizer.ggml.token_type": types,
            "tokenizer.ggml.merges": merges,
            "tokenizer.ggml.bos_token_id": END_OF_TEXT_ID,
            "tokenizer.ggml.eos_token_id": TURN_END_ID,
            "tokenizer.ggml.padding_token_id": END_OF_TEXT_ID,
            "tokenizer.ggml.add_bos_token": True,
            "tokenizer.chat_template": CHAT_TEMPLATE,
        }


def _byte_level(model: Any) -> Any:
    tokenizers = import_module("tokenizers")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return tokenizer


def rendered_chat(messages: Sequence[Mapping[str, str]]) -> str:
    """Return a whole dialogue as the chat template writes it."""
    return "".join(
        f"{TURN_START}{message['role']}\n{message['content']}{TURN_END}\n" for message in messages
    )
