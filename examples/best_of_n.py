"""Sixteen stories are drawn, a function of yours reads them, and the best two come back."""

from llm_decoder import LLM, SearchParams

PROMPT = "One day, a boy named Ben went to the park with his dog."
WORDS = ("ball", "tree", "happy", "friend", "home")


def has_the_words(prompt: str, stories: list[str]) -> list[float]:
    """The share of WORDS that a story has, and half as much again when it ends with a whole sentence."""
    found = [sum(word in story for word in WORDS) / len(WORDS) for story in stories]
    return [
        share * (1.5 if story.rstrip().endswith((".", "!", '"')) else 1.0)
        for share, story in zip(found, stories, strict=True)
    ]


with LLM() as llm:
    params = SearchParams(
        method="sample", width=16, n=2, max_tokens=60, temperature=0.9, seed=1, scorer=has_the_words, alpha=0.8
    )
    (output,) = llm.search(PROMPT, params)
    for story in output.outputs:
        print(
            f"final {story.final_score:.3f} (scorer {story.rerank_score:.2f}, log probability {story.beam_score:.3f}, "
            f"place {story.beam_rank} by that)"
        )
        print(f"  {PROMPT + story.text!r}")

    # The same with the model's own judgement: how likely it finds each story behind a query.
    (output,) = llm.search(
        PROMPT,
        SearchParams(
            method="sample",
            width=16,
            max_tokens=60,
            temperature=0.9,
            seed=1,
            scorer="likelihood",
            query="A happy story about a ball:",
            alpha=1.0,
        ),
    )
    print(f"likeliest behind the query\n  {PROMPT + output.outputs[0].text!r}")
