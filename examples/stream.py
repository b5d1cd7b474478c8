"""Text as it is made. Leaving the loop early cancels the request."""

from llm_decoder import LLM, SamplingParams

PROMPT = "Once upon a time, there was a little dog named Max."

with LLM() as llm:
    print(PROMPT, end="")
    for event in llm.stream(PROMPT, SamplingParams(max_tokens=64, temperature=0.0)):
        print(event.text, end="", flush=True)
        if event.output is not None:  # the last event
            print(f"\n[{event.finish_reason}, {event.output.metrics.tokens_per_s:.0f} tokens/s]")

    with llm.stream(PROMPT, SamplingParams(max_tokens=500)) as events:
        first = next(events)
    print(f"left after {len(first.token_ids)} token(s)")
