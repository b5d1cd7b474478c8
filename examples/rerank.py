"""Documents put in the order in which they answer a question, by a cross-encoder: a folder given as argument, else the
one that comes with the package."""

import sys

from llm_decoder import CrossEncoder
from llm_decoder.embedded import embedded_reranker

QUERY = "What did the girl find in the garden?"
DOCUMENTS = [
    "The sun was hot, and the dog slept under a tree all day.",
    "Lily went into the garden and found a small blue bird.",
    "Tom likes to play with his red car.",
    "In the garden there are flowers and a big tree.",
]

encoder = CrossEncoder(sys.argv[1] if len(sys.argv) > 1 else embedded_reranker())
for place, hit in enumerate(encoder.rank(QUERY, DOCUMENTS), 1):
    print(f"{place}. {hit.score:7.3f}  {DOCUMENTS[hit.index]}")
