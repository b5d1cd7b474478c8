import pytest

TEXT = "Once upon a time 😀"


def test_vllms_form_counts_and_spells(server, storyteller):
    body = {"prompt": TEXT, "return_token_strs": True, "model": "storyteller"}
    status, answer, _ = server.post("/tokenize", body)
    assert status == 200
    assert answer["tokens"] == storyteller.tokenizer.encode(TEXT)
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"])
    assert answer["max_model_len"] == 1024
    assert answer["token_strs"][:2] == ["<|begin_of_text|>", "Once"]
    bare = server.post("/tokenize", {"prompt": TEXT, "add_special_tokens": False})[1]["tokens"]
    assert bare == answer["tokens"][1:]


def test_llama_cpps_form_has_no_begin_token_and_pieces(server, storyteller):
    bare = storyteller.tokenizer.encode(TEXT, add_special_tokens=False)
    assert server.post("/tokenize", {"content": TEXT})[1]["tokens"] == bare
    assert server.post("/tokenize", {"content": TEXT, "add_special": True})[1]["tokens"][1:] == bare
    pieces = server.post("/tokenize", {"content": TEXT, "with_pieces": True})[1]["tokens"]
    assert [piece["id"] for piece in pieces] == bare
    joined = b"".join(p["piece"].encode() if isinstance(p["piece"], str) else bytes(p["piece"]) for p in pieces)
    assert joined.decode() == TEXT


def test_a_chat_is_tokenized_through_the_template(server, storyteller):
    messages = [{"role": "user", "content": "hello"}]
    answer = server.post("/tokenize", {"messages": messages})[1]
    assert answer["tokens"] == storyteller.tokenizer.apply_chat_template(messages)
    shorter = server.post("/tokenize", {"messages": messages, "add_generation_prompt": False})[1]
    assert shorter["tokens"] == answer["tokens"][: shorter["count"]] != answer["tokens"]


def test_text_becomes_special_tokens_only_when_asked(server, storyteller):
    assert server.post("/tokenize", {"content": "<|end|>"})[1]["count"] > 1
    special = server.post("/tokenize", {"content": "<|end|>", "parse_special": True})[1]["tokens"]
    assert special == [storyteller.tokenizer.token_id("<|end|>")]


def test_harnesses_learn_of_special_tokens_and_their_ids(server, storyteller):
    info = server.get("/tokenizer_info")[1]
    assert info["eos_token"] == "<|end_of_text|>"
    assert info["chat_template"] == storyteller.tokenizer.chat_template.source
    asked = {"prompt": info["eos_token"], "add_special_tokens": False}
    assert server.post("/tokenize", asked)[1]["tokens"] == [storyteller.tokenizer.token_id("<|end_of_text|>")]
    assert server.post("/tokenize", {"prompt": info["eos_token"] + "a"})[1]["count"] > 3


def test_detokenize_gives_the_text_back_under_both_names(server, storyteller):
    answer = server.post("/detokenize", {"tokens": storyteller.tokenizer.encode(TEXT, add_special_tokens=False)})[1]
    assert answer == {"prompt": TEXT, "content": TEXT}
    assert server.post("/detokenize", {"tokens": []})[1]["content"] == ""


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "content": "a"}, "prompt"),
        ("/tokenize", {"prompt": "a" * (512 * 1024 + 1)}, "prompt"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [4096]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens.0"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
        ("/detokenize", {"tokens": [2**70]}, "tokens.0"),
    ],
)
def test_a_bad_field_is_refused(server, path, body, param):
    status, answer, _ = server.post(path, body)
    assert (status, answer["error"]["param"]) == (400, param)
