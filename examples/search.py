"""The best answers that eight beams find, and those of groups that must differ."""

from llm_decoder import LLM, SearchParams

PROMPT = "One day, a girl named Lily found"

with LLM() as llm:
    for params in (
        SearchParams(width=8, n=3, max_tokens=30),
        SearchParams(width=8, n=3, max_tokens=30, groups=4, diversity_penalty=1.0),
    ):
        (output,) = llm.search(PROMPT, params)
        print(f"{params.groups} group(s), {len(output.tree)} tokens looked at")
        for answer in output.outputs:
            print(f"  {answer.beam_score:.3f} {PROMPT + answer.text!r}")
