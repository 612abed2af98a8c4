"""The vocabulary: bytes survive, chats look as the template says, llama.cpp cuts alike."""

from pathlib import Path

import pytest

from haversack.devices.llama_model import LlamaModel
from haversack.edge.templates import ChatTemplate
from haversack.tools.training.decoder import Decoder, DecoderShape
from haversack.tools.training.export import export_gguf, load_gguf
from haversack.tools.training.vocabulary import (
    CHAT_TEMPLATE,
    END_OF_TEXT,
    END_OF_TEXT_ID,
    TURN_END,
    TURN_END_ID,
    Vocabulary,
    rendered_chat,
)

TEXTS = [
    "Once upon a time, there was a café; it's 12,345 metres  away!\n\n\tIsn't it?  ",
    'He said: "Don\'t—stop."   \n \n Tabs\tand\r\nlines. 日本語 🦊',
    f"<|im_start|>user\nHello!{TURN_END}\n{END_OF_TEXT}",
    "",
    " ",
    "a" * 300,
]
CHAT = [
    {"role": "user", "content": "Tell me a story."},
    {"role": "assistant", "content": "Once upon a time"},
]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    text = (Path(__file__).parents[3] / "README.md").read_text()
    return Vocabulary.train([text, rendered_chat(CHAT) * 50], 400)


@pytest.fixture(scope="module")
def model_path(vocabulary: Vocabulary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = DecoderShape(vocab_size=400, num_hidden_layers=1, num_experts=0)
    path = tmp_path_factory.mktemp("vocabulary") / "model.gguf"
    export_gguf(Decoder(shape), vocabulary, path, "F16")
    return path


def test_text_survives(vocabulary: Vocabulary) -> None:
    for text in TEXTS:
        assert vocabulary.decode(vocabulary.encode(text)) == text
    assert vocabulary.encode_all(TEXTS) == [vocabulary.encode(text) for text in TEXTS]


def test_special_pieces_have_fixed_ids_and_are_not_learnt_as_text(vocabulary: Vocabulary) -> None:
    assert len(vocabulary) == 400
    assert vocabulary.encode(END_OF_TEXT) == [END_OF_TEXT_ID]
    assert vocabulary.encode(TURN_END) == [TURN_END_ID]
    pieces = vocabulary.metadata()["tokenizer.ggml.tokens"]
    assert isinstance(pieces, list)
    assert not [piece for piece in pieces[3:] if "im_" in str(piece) or "<|" in str(piece)]


def test_llama_cpp_cuts_text_the_same_way(vocabulary: Vocabulary, model_path: Path) -> None:
    model = LlamaModel(model_path)
    for text in TEXTS:
        assert model.vocabulary.tokenize(text, add_special=False) == vocabulary.encode(text)
    assert model.vocabulary.tokenize("a")[0] == END_OF_TEXT_ID
    assert model.vocabulary.ends(TURN_END_ID) and model.vocabulary.ends(END_OF_TEXT_ID)
    model.close()


def test_a_file_gives_its_vocabulary_back(vocabulary: Vocabulary, model_path: Path) -> None:
    again = load_gguf(model_path)[1]
    assert again.metadata() == vocabulary.metadata()
    assert again.encode_all(TEXTS) == vocabulary.encode_all(TEXTS)


def test_training_sees_what_the_template_renders() -> None:
    rendered = ChatTemplate(CHAT_TEMPLATE, bos="", eos="").render(CHAT)
    assert rendered == rendered_chat(CHAT) + "<|im_start|>assistant\n"


def test_too_little_text_is_said() -> None:
    with pytest.raises(ValueError, match=r"the text gives 2\d\d pieces, not 5000: ask for fewer"):
        Vocabulary.train(["a fox and a crow"], 5000)


def test_it_is_kept_in_a_file(vocabulary: Vocabulary, tmp_path: Path) -> None:
    vocabulary.save(tmp_path / "tokenizer.json")
    assert Vocabulary.load(tmp_path / "tokenizer.json").metadata() == vocabulary.metadata()
