"""Prompts that begin alike share pages of the KV cache: the common beginning is computed once."""

from llm_decoder import LLM, SamplingParams

RULES = "Here are some short stories for little children. They all end well. " * 8
GREEDY = SamplingParams(max_tokens=16, temperature=0.0)

with LLM() as llm:
    for beginning in ("Once there was a fox.", "Once there was an owl.", "Once there was a fish."):
        (output,) = llm.generate(RULES + beginning, GREEDY)
        metrics = output.metrics
        print(
            f"{beginning:24} {metrics.n_cached_tokens:4} of {metrics.n_prompt_tokens} prompt tokens cached, "
            f"first token after {1000 * metrics.time_to_first_token_s:.1f} ms"
        )

    # Requests with another salt share nothing: whether a prompt is cached tells nobody what others asked.
    (output,) = llm.generate(RULES + "Once there was a fox.", SamplingParams(max_tokens=16, cache_salt="someone else"))
    print(f"{'with another salt':24} {output.metrics.n_cached_tokens:4} cached")

    stats = llm.stats()
    print(f"prefix hit rate {stats['prefix_hit_rate']:.0%}")
