import numpy as np
import openai
import pytest

TEXTS = ["Once upon a time", "The dog barks."]


def test_vectors_are_mean_hidden_states_of_length_one(client, storyteller):
    answer = client.embeddings.create(model="storyteller", input=TEXTS)  # the client asks for base64
    expected = storyteller.embed(TEXTS)
    assert [entry.index for entry in answer.data] == [0, 1]
    for entry, vector in zip(answer.data, expected, strict=True):
        np.testing.assert_allclose(entry.embedding, vector / np.linalg.norm(vector), rtol=1e-6, atol=1e-7)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0
    assert answer.model == "storyteller"


def test_both_encodings_hold_the_same_numbers_bit_for_bit(client):
    asked = dict(model="storyteller", input="Once upon a time")
    floats = client.embeddings.create(**asked, encoding_format="float").data[0].embedding
    assert floats == client.embeddings.create(**asked).data[0].embedding


def test_token_ids_are_taken_too(client, storyteller):
    ids = [storyteller.tokenizer.encode(text) for text in TEXTS]
    by_ids = client.embeddings.create(model="storyteller", input=ids, encoding_format="float")
    by_text = client.embeddings.create(model="storyteller", input=TEXTS, encoding_format="float")
    assert by_ids.data == by_text.data
    one = client.embeddings.create(model="storyteller", input=ids[0], encoding_format="float")
    assert one.data[0].embedding == by_text.data[0].embedding


def test_a_header_says_what_the_vectors_are(server):
    _, _, headers = server.post("/v1/embeddings", {"input": "a"})
    assert headers["x-llm-decoder-embedding"] == "mean-pooled-hidden-states"


@pytest.mark.parametrize(
    ("field", "param"),
    [
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": None}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"dimensions": 4}, "dimensions"),
        ({"encoding_format": "hex"}, "encoding_format"),
    ],
)
def test_a_bad_field_is_refused(server, field, param):
    status, answer, _ = server.post("/v1/embeddings", {"input": "a"} | field)
    assert (status, answer["error"]["param"]) == (400, param)


def test_another_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="text-embedding-3-small", input="a")
