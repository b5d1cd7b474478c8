"""A story grows sentence by sentence, and after each a function of yours says which of its beginnings go on."""

from llm_decoder import LLM, SearchParams

PROMPT = "One day, a boy named Ben went to the park with his dog."


def is_about_the_dog(prompt: str, stories: list[str]) -> list[float]:
    """A process reward: the share of sentences about the dog, of stories that need not be over."""
    shares: list[float] = []
    for story in stories:
        sentences = [sentence for sentence in story.split(".") if sentence.strip()]
        shares.append(sum("dog" in sentence for sentence in sentences) / max(1, len(sentences)))
    return shares


params = SearchParams(
    method="steps",
    separator=".",
    step_tokens=40,
    width=3,
    branches=4,
    n=2,
    max_tokens=90,
    temperature=0.9,
    seed=1,
    scorer=is_about_the_dog,
    alpha=0.9,
)

with LLM() as llm:
    for event in llm.stream_search(PROMPT, params):
        if event.search is not None:
            print(f"step {event.search.step}: {len(event.search.pruned)} let go, {len(event.search.live)} go on")
            if event.text:
                print(f"  all of them begin so: ...{event.text!r}")
        if event.output is not None:
            for story in event.output.outputs:
                print(f"\nfinal {story.final_score:.3f}, {story.rerank_score:.0%} about the dog\n  {story.text!r}")

    samples = SearchParams(method="sample", width=12, max_tokens=90, temperature=0.9, seed=1)
    (likeliest,) = llm.search(PROMPT, samples)
    (share,) = is_about_the_dog(PROMPT, [likeliest.outputs[0].text])
    print(f"\nthe likeliest of twelve stories that nobody looked at: {share:.0%} about the dog")
