"""What beams hold of the cache beside as many separate sequences."""

import pytest

from llm_decoder import LLM, SamplingParams, SearchParams

WORDS = "The cat sat by the door and looked at the rain. "
N_GENERATED = 64
MOST = 0.35  # of the pages that separate sequences hold


@pytest.fixture(scope="module")
def llm():
    with LLM(max_num_seqs=16) as one:
        yield one


def most_pages(llm, run) -> int:
    """The most pages held after any step of what `run` does."""
    held = []

    def noting(backend):
        step = backend.step

        def noted(*args):
            n_rows = step(*args)
            held.append(backend.cache.stats()["n_held"])
            return n_rows

        backend.step = noted

    def plain(backend):
        del backend.step

    llm._engine.call(noting)
    try:
        run()
    finally:
        llm._engine.call(plain)
    return max(held)


@pytest.mark.parametrize("n_prompt", [256, 900])
def test_eight_beams_hold_few_of_the_pages_of_eight_separate_sequences(llm, n_prompt):
    prompt = llm.tokenizer.encode(WORDS * 100)[:n_prompt]
    beams = SearchParams(width=8, n=8, max_tokens=N_GENERATED, ignore_eos=True)
    beams_pages = most_pages(llm, lambda: llm.search(prompt, beams))
    # Their first tokens differ, so that they have no page in common.
    others = [[100 + i, *prompt[1:]] for i in range(8)]
    greedy = SamplingParams(temperature=0, max_tokens=N_GENERATED, ignore_eos=True)
    separate_pages = most_pages(llm, lambda: llm.generate(others, greedy))
    assert separate_pages >= 8 * (n_prompt + N_GENERATED) // llm._engine.call(lambda backend: backend.page_size)
    assert beams_pages <= MOST * separate_pages
