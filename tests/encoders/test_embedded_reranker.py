"""The reranker that ships inside the package: what it is, and that it chooses as its card says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from llm_decoder import CrossEncoder
from llm_decoder.embedded import embedded_reranker

EVALUATION = Path(__file__).parents[2] / "tools" / "reranker_model" / "evaluation.json"
# A beginning, a request or a question, the only text that fits, and texts that do not.
EXAMPLES = [
    (
        "Once upon a time there was a boy named Sam. Sam had a small blue boat. One day the boat",
        "floated down the river and Sam ran after it.",
        ["the the was boat small the a and day of was it.", "Lily baked a cake with her mom in the kitchen."],
    ),
    (
        "Mia was sad because she had lost her doll. Her brother said,",
        '"Do not cry, Mia. I will help you find your doll."',
        ['"Do not drive the car, I will eat the lake and it was."', "The lion roared and all the animals ran away."],
    ),
    (
        "Tell me a story about a cat and a red ball.",
        "Once upon a time, there was a cat named Tom. Tom loved to play with his red ball.",
        [
            "Once upon a time, there was a farmer. He had a cow and a field of corn.",
            "Once upon a time, there was a princess. She lived in a castle.",
        ],
    ),
    (
        "Tell me a bedtime story about a little bird.",
        "Once upon a time, a little bird lived in a tall tree. Every day she wanted to fly.",
        [
            "Once upon a time, a big truck drove to the city. It was very loud.",
            "Once upon a time, there was a cook who made soup for the king.",
        ],
    ),
    (
        "Can I park my car at the hotel?",
        "Yes, there is free parking for guests.",
        ["Breakfast is served from seven to ten.", "No, pets are not allowed at this hotel."],
    ),
    (
        "What time is breakfast?",
        "Breakfast is served from seven to ten.",
        ["Yes, there is free parking for guests.", "The pool is open all year."],
    ),
    (
        "who wrote the first book about the island",
        "the first book about the island was written by a sailor named john marsh in 1821 .",
        ["the river is two hundred miles long .", "the team won the cup in 1998 and again in 2004 ."],
    ),
    (
        "Why did the fox hide in the barn?",
        "The fox heard the dogs coming, so he crept into the barn and hid under the hay.",
        ["The queen gave the girl a golden comb.", "The old man went to the mill to buy flour."],
    ),
    (
        "my card has not arrived yet",
        "when will I get my new card?",
        ["how do I change my pin?", "tell me the weather for tomorrow"],
    ),
    (
        "is the moon smaller than the earth",
        "The Moon is the only natural satellite of the Earth. Its diameter is about a quarter of the Earth's.",
        ["A violin has four strings and is played with a bow.", "Bread is baked from flour, water and salt."],
    ),
]


@pytest.fixture(scope="module")
def reranker() -> CrossEncoder:
    return CrossEncoder(embedded_reranker(), threads=1)


def test_it_is_small() -> None:
    assert sum(file.stat().st_size for file in embedded_reranker().iterdir()) <= 8_000_000


def test_it_is_a_cross_encoder_of_one_label() -> None:
    config = json.loads((embedded_reranker() / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert list(config["id2label"]) == ["0"]
    assert config["max_position_embeddings"] == 256


def test_its_card_says_what_it_is_built_with() -> None:
    card = (embedded_reranker() / "README.md").read_text()
    assert card.startswith("# Llama-Story-Reranker\n\n**Built with Llama.**")


@pytest.mark.parametrize("task", ["stories", "questions"])
def test_its_card_says_what_was_measured(task: str) -> None:
    card = (embedded_reranker() / "README.md").read_text()
    figures = json.loads(EVALUATION.read_text())[task]
    assert figures["groups"] >= 1000
    assert f"{task.capitalize()}: {figures['groups']} groups of {figures['documents']} documents" in card
    for way, row in figures["ways"].items():
        assert f"| {way} | {row['first']:.3f} | {row['mrr']:.3f} | {row['ndcg@10']:.3f} |" in card


@pytest.mark.parametrize(
    ("task", "ways"),
    [
        ("stories", ["log probability", "longest", "shortest", "chance"]),
        ("questions", ["log probability", "longest", "shortest", "chance", "word overlap"]),
    ],
)
def test_it_was_measured_better_than_choosing_without_it(task: str, ways: list[str]) -> None:
    figures = json.loads(EVALUATION.read_text())[task]["ways"]
    for way in ways:
        _, low, _ = figures[way]["gain"]["first"]
        assert low > 0, way


def test_its_tokenizer_gives_pairs_back_in_lower_case() -> None:
    tokenizer = Tokenizer.from_file(str(embedded_reranker() / "tokenizer.json"))
    pair = tokenizer.encode("Where is the Dog?", "The dog, Max, ran to the park.")
    text = tokenizer.decode(pair.ids, skip_special_tokens=False)
    assert text == "[CLS] where is the dog? [SEP] the dog, max, ran to the park. [SEP]"
    assert np.diff(pair.type_ids).tolist().count(1) == 1
    config = json.loads((embedded_reranker() / "config.json").read_text())
    assert tokenizer.get_vocab_size() == config["vocab_size"]


def test_it_chooses_right_in_most_of_ten_plain_examples(reranker: CrossEncoder) -> None:
    right_first = [
        int(np.argmax(reranker.score(query, [*wrong, right]))) == len(wrong) for query, right, wrong in EXAMPLES
    ]
    assert len(right_first) == 10
    assert sum(right_first) >= 7  # of three candidates each: a chooser by chance gets there once in fifty times


def test_int8_scores_stay_near_those_of_float32(reranker: CrossEncoder) -> None:
    exact = CrossEncoder(embedded_reranker(), quantization="none", threads=1)
    pairs = [(query, text) for query, right, wrong in EXAMPLES for text in (right, *wrong)]
    assert np.corrcoef(reranker.score_pairs(pairs), exact.score_pairs(pairs))[0, 1] > 0.99
