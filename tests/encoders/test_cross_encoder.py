"""CrossEncoder at its seam: scores, ranks, what is cut, what is refused, many threads."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoder_factory import make_encoder, make_pair_tokenizer, random_texts
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from llm_decoder import CrossEncoder
from llm_decoder.encoders import encoder as encoder_module
from llm_decoder.encoders.pair_tokenizer import PairTokenizer
from llm_decoder.errors import ConfigError, InvalidRequestError, UnsupportedModelError

DOCUMENTS = random_texts(30, seed=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("encoders") / "little-reranker", "bert", seed=1)


@pytest.fixture(scope="module")
def encoder(folder: Path) -> CrossEncoder:
    return CrossEncoder(folder, threads=1)


def test_a_score_never_depends_on_what_else_is_scored(encoder: CrossEncoder) -> None:
    together = encoder.score("the cat", DOCUMENTS)
    alone = [encoder.score("the cat", [document])[0] for document in DOCUMENTS]
    assert together.tolist() == alone
    assert len(set(alone)) > 20  # and documents are told apart


def test_the_steps_of_a_long_list_change_no_score(
    encoder: CrossEncoder, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder_module, "MAX_TOKENS_PER_STEP", 1)  # then the longest text there can be is a step
    monkeypatch.setattr(encoder_module, "_TEXTS_A_ROUND", 7)
    seen: list[tuple[int, int]] = []
    small = CrossEncoder(folder, threads=1)
    scores = small.score("the cat", DOCUMENTS, progress=lambda *done: seen.append(done))
    assert scores.tolist() == encoder.score("the cat", DOCUMENTS).tolist()
    assert len(seen) > 5
    assert seen[-1] == (30, 30)
    assert seen == sorted(seen)


def test_pairs_score_as_a_query_with_documents_does(encoder: CrossEncoder) -> None:
    pairs = [("the cat", document) for document in DOCUMENTS]
    assert encoder.score_pairs(pairs).tolist() == encoder.score("the cat", DOCUMENTS).tolist()


def test_the_order_of_a_pair_counts(encoder: CrossEncoder) -> None:
    one, other = encoder.score_pairs([("the cat", "a dog"), ("a dog", "the cat")])
    assert one != other


def test_sigmoid_keeps_the_order_and_stays_within_0_and_1(encoder: CrossEncoder) -> None:
    logits = encoder.score("the cat", DOCUMENTS)
    shares = encoder.score("the cat", DOCUMENTS, activation="sigmoid")
    assert np.allclose(shares, 1 / (1 + np.exp(-logits.astype(np.float64))), atol=1e-6)


def test_rank_gives_the_best_first_and_of_equal_ones_the_first(encoder: CrossEncoder) -> None:
    ranked = encoder.rank("the cat", [*DOCUMENTS, DOCUMENTS[4]])
    scores = encoder.score("the cat", [*DOCUMENTS, DOCUMENTS[4]])
    assert sorted(hit.index for hit in ranked) == list(range(31))
    assert [hit.score for hit in ranked] == sorted(scores.tolist(), reverse=True)
    places = [hit.index for hit in ranked]
    assert places.index(4) < places.index(30)
    repeated = encoder.rank("the cat", ["a dog", "the cat", "mat"] * 100)
    assert repeated == sorted(repeated, key=lambda hit: (-hit.score, hit.index))
    assert encoder.rank("the cat", DOCUMENTS, top_n=3) == encoder.rank("the cat", DOCUMENTS)[:3]
    assert len(encoder.rank("the cat", DOCUMENTS, top_n=99)) == 30


def test_nothing_to_score_gives_nothing(encoder: CrossEncoder) -> None:
    assert encoder.score("the cat", []).shape == (0,)
    assert encoder.score_pairs([]).dtype == np.float32
    assert encoder.rank("the cat", []) == []
    assert encoder.count_tokens("the cat", []).shape == (0,)


def test_empty_texts_are_scored(encoder: CrossEncoder) -> None:
    assert np.isfinite(encoder.score("", ["", "the cat", ""])).all()
    assert encoder.count_tokens("", [""]).tolist() == [3]  # [CLS] [SEP] [SEP]


def test_a_long_pair_is_cut_and_counted(folder: Path) -> None:
    encoder = CrossEncoder(folder, max_length=16)
    assert encoder.max_length == 16
    text = "cat dog mat river water"
    long_text = " ".join([text] * 10)
    # Of the longer text is left what fits beside the shorter one: 16 - 3 around them - 2.
    assert encoder.score("the cat", [long_text]) == encoder.score("the cat", [" ".join([text] * 2) + " cat"])
    assert encoder.n_truncated == 1
    assert encoder.count_tokens("the cat", [text, long_text]).tolist() == [10, 16]
    read = encoder.read_pairs([("the cat", text), ("the cat", long_text)])
    assert read.n_tokens.tolist() == [10, 16]
    assert read.is_cut.tolist() == [False, True]
    assert read.scores.tolist() == encoder.score("the cat", [text, long_text]).tolist()


class Recording:
    """A tokenizer, and how many characters it was asked for at a time."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.n_chars: list[int] = []

    def encode(self, first: str, second: str | None = None, **options: Any) -> Any:
        self.n_chars += [len(text) for text in (first, second) if text is not None]
        return self._tokenizer.encode(first, second, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def test_a_book_is_tokenised_no_further_than_it_counts(encoder: CrossEncoder) -> None:
    recording = Recording(make_pair_tokenizer("bert"))
    tokenizer = PairTokenizer(recording, max_length=16)  # type: ignore[arg-type]
    book = "the cat was on the mat . " * 200_000
    tokens = tokenizer.encode_pair("a dog", book, places=("query", "document"))
    assert sum(recording.n_chars) < 5000
    assert tokens.is_cut
    assert tokens.ids.tolist() == tokenizer.encode_pair("a dog", book[:2000], places=("query", "document")).ids.tolist()
    blanks = " " * 20_000 + "cat"  # the words come late: then it looks further
    assert encoder.score("a dog", [blanks]) == encoder.score("a dog", ["cat"])


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "modernbert"])
def test_pairs_are_put_together_and_cut_as_the_tokenizers_library_does_it(family: str, side: str) -> None:
    theirs = make_pair_tokenizer(family)
    texts = random_texts(14, seed=8, most_words=30)
    n_cut = 0
    for max_length in (6, 7, 16, 17, 40, 200):
        tokenizer = PairTokenizer(make_pair_tokenizer(family), max_length=max_length, side=side)
        theirs.enable_truncation(max_length, strategy="longest_first", direction=side)
        for first in texts:
            one, expected = tokenizer.encode(first, place="text"), theirs.encode(first)
            assert (one.ids.tolist(), one.type_ids.tolist()) == (expected.ids, expected.type_ids)
            for second in texts:
                both, expected = tokenizer.encode_pair(first, second, places=("a", "b")), theirs.encode(first, second)
                assert (both.ids.tolist(), both.type_ids.tolist()) == (expected.ids, expected.type_ids)
                assert both.is_cut == bool(expected.overflowing)
                n_cut += both.is_cut
    assert n_cut > 300


def test_a_tokenizer_that_puts_the_second_text_first_is_refused() -> None:
    tokenizer = make_pair_tokenizer("bert")
    special = [("[CLS]", tokenizer.token_to_id("[CLS]")), ("[SEP]", tokenizer.token_to_id("[SEP]"))]
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", pair="$B [SEP] $A", special_tokens=special)
    with pytest.raises(UnsupportedModelError, match="in their order"):
        PairTokenizer(tokenizer, max_length=16)


def test_what_stands_in_many_pairs_is_tokenised_once(folder: Path) -> None:
    """A megabyte without a blank is one word to a WordPiece: every reading of it takes half a second."""
    encoder = CrossEncoder(folder, threads=1)
    tokenizer = encoder._encoder.tokenizer
    recording = Recording(tokenizer._tokenizer)
    tokenizer._tokenizer = recording  # type: ignore[assignment]
    query = "a" * 30_000
    scores = [encoder.score(query, DOCUMENTS) for _ in range(2)]
    assert recording.n_chars.count(len(query)) == 1
    encoder.score_pairs([(query[:-1], "a"), (query[1:] + "b", "a")] * 9)
    assert recording.n_chars.count(len(query) - 1) == 1
    assert recording.n_chars.count(len(query)) == 2
    scores.append(encoder.score(query, DOCUMENTS))
    assert scores[0].tolist() == scores[1].tolist() == scores[2].tolist()


def test_what_a_user_types_never_becomes_a_special_token(encoder: CrossEncoder) -> None:
    assert encoder.count_tokens("", ["[SEP]"]).tolist() == [8]  # [ s e p ], around it three


@pytest.mark.parametrize(
    ("query", "documents", "param"),
    [
        (3, ["a"], "query"),
        (None, [], "query"),
        ("\ud800", ["a"], "query"),
        ("a", "the cat", "documents"),
        ("a", None, "documents"),
        ("a", {"b": 1}, "documents"),
        ("a", ["b", 5], "documents"),
        ("a", ["b", "\udfff"], "documents"),
        ("a", ["x" * ((1 << 26) + 1)], "documents"),
    ],
)
def test_what_is_no_text_is_refused(encoder: CrossEncoder, query: object, documents: object, param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        encoder.score(query, documents)  # type: ignore[arg-type]
    assert caught.value.param == param


def test_a_bad_document_is_told_by_its_number(encoder: CrossEncoder) -> None:
    with pytest.raises(InvalidRequestError, match=r"documents\[1\].*int"):
        encoder.score("a", ["b", 5])  # type: ignore[list-item]


@pytest.mark.parametrize("pairs", ["ab", [("a",)], [("a", "b", "c")], ["ab"], [("a", 1)], None])
def test_what_is_no_pair_is_refused(encoder: CrossEncoder, pairs: object) -> None:
    with pytest.raises(InvalidRequestError, match="pairs"):
        encoder.score_pairs(pairs)  # type: ignore[arg-type]


@pytest.mark.parametrize("top_n", [0, -1, 1.5, True, "2"])
def test_a_top_n_that_is_no_number_of_documents_is_refused(encoder: CrossEncoder, top_n: object) -> None:
    with pytest.raises(InvalidRequestError, match="top_n"):
        encoder.rank("a", ["b"], top_n)  # type: ignore[arg-type]


def test_an_unknown_activation_is_refused(encoder: CrossEncoder) -> None:
    with pytest.raises(InvalidRequestError, match="none or sigmoid"):
        encoder.score("a", ["b"], activation="softmax")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("quantization", "int4"),
        ("threads", 0),
        ("max_length", 0),
        ("max_length", 4),
        ("max_length", 97),
        ("max_length", "64"),
        ("isa", "mmx"),
    ],
)
def test_an_option_out_of_its_limits_is_refused(folder: Path, option: str, value: object) -> None:
    with pytest.raises(ConfigError, match=option):
        CrossEncoder(folder, **{option: value})  # type: ignore[arg-type]


def test_it_is_called_as_its_folder(encoder: CrossEncoder, folder: Path) -> None:
    assert encoder.name == "little-reranker"
    assert encoder.path == folder


def test_many_threads_get_their_own_scores(encoder: CrossEncoder) -> None:
    queries = random_texts(8, seed=21, most_words=6)
    expected = [encoder.score(query, DOCUMENTS).tolist() for query in queries]
    found: dict[int, list[list[float]]] = {index: [] for index in range(8)}

    def ask(index: int) -> None:
        for _ in range(5):
            found[index].append(encoder.score(queries[index], DOCUMENTS).tolist())

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found[index] == [expected[index]] * 5 for index in range(8))


def test_as_many_threads_as_one_likes_give_the_same_scores(encoder: CrossEncoder, folder: Path) -> None:
    assert CrossEncoder(folder, threads=2).score("a", DOCUMENTS).tolist() == encoder.score("a", DOCUMENTS).tolist()
