"""How sure the model is: alternatives for each token, and the perplexity of a text."""

import numpy as np

from llm_decoder import LLM, SamplingParams

with LLM() as llm:
    (output,) = llm.generate("The sun was", SamplingParams(max_tokens=5, temperature=0.0, logprobs=3))
    for entry in output.outputs[0].logprobs or []:
        best = ", ".join(f"{llm.tokenizer.decode([token])!r} {np.exp(logprob):.0%}" for token, logprob in entry.top)
        print(f"{llm.tokenizer.decode([entry.token_id])!r:12} rank {entry.rank}  best: {best}")

    for text in ("The dog ran after the ball.", "The ball ran dog after the the."):
        logprobs = llm.score(text)  # float32 [n_tokens - 1]
        print(f"perplexity {np.exp(-logprobs.mean()):8.1f}  {text}")
