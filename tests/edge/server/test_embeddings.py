"""Embeddings over HTTP, as the official client asks for them."""

import numpy as np
import openai
import pytest

TEXTS = ["Once upon a time there was a fox.", "The king had three sons."]


@pytest.fixture
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def test_texts_become_vectors_of_length_1(client: openai.OpenAI) -> None:
    whole = client.embeddings.create(model="tales-moe", input=TEXTS)  # asks for base64
    plain = client.embeddings.create(model="tales-moe", input=TEXTS[1], encoding_format="float")
    assert [each.index for each in whole.data] == [0, 1]
    assert whole.data[1].embedding == pytest.approx(plain.data[0].embedding, abs=1e-7)
    assert np.linalg.norm(whole.data[0].embedding) == pytest.approx(1, abs=1e-5)
    assert whole.usage.prompt_tokens == whole.usage.total_tokens > plain.usage.prompt_tokens
    ids = client.embeddings.create(model="tales-moe", input=[[5, 6, 7], [5, 6]])
    assert len(ids.data) == 2 and ids.usage.prompt_tokens == 5
    size = len(plain.data[0].embedding)
    same = client.embeddings.create(model="tales-moe", input=TEXTS[1], dimensions=size)
    assert len(same.data[0].embedding) == size


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"input": ""}, "empty"),
        ({"input": []}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": {"text": "x"}}, "input"),
        ({"input": "x", "dimensions": 7}, "vectors have 256 numbers"),
        ({"input": "x", "encoding_format": "int8"}, "float or base64"),
        ({"input": [10**9]}, "not in the vocabulary"),
        ({"input": "fox " * 9000}, "the context holds"),
    ],
)
def test_what_cannot_be_embedded_is_400(
    client: openai.OpenAI, asked: dict[str, object], words: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=words):
        client.post("/embeddings", body={"model": "tales-moe", **asked}, cast_to=object)
