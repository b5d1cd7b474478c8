"""Answers of a given form, here those of a phrase table: greedy takes the likeliest first word and is left with what
may follow it; beams keep the other beginnings until it shows where they lead."""

from llm_decoder import LLM, SamplingParams, SearchParams

# "Un chien a trouvé un os sous l'arbre.", in phrases that go together.
PHRASES = (
    r" (The (hound|poodle) (did encounter|has located) (an os|the bones) (beneath|below) the (shaft|mast)\."
    r"|A (dog|puppy) (found|got) a (bone|leg) (under|by) (a|the) tree\.)"
)
PROMPT = "This is a story about a pet."

with LLM() as llm:
    form = {"regex": PHRASES}
    (greedy,) = llm.generate(PROMPT, SamplingParams(temperature=0.0, max_tokens=60, structured_outputs=form))
    (searched,) = llm.search(PROMPT, SearchParams(width=8, n=3, max_tokens=60, structured_outputs=form))
    for name, answers in (("greedy", greedy.outputs), ("8 beams", searched.outputs)):
        for answer in answers:
            print(f"{name:8} {answer.cumulative_logprob:7.2f} {answer.text!r}")
