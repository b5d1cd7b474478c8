"""Make tests/goldens/storyteller.json: greedy text of the embedded model in float32, as HF transformers computes it.

    python tools/make_golden_text.py

Needs torch and transformers. Run it after the embedded model has changed.
"""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "python" / "llm_decoder" / "embedded" / "storyteller"
GOLDEN = ROOT / "tests" / "goldens" / "storyteller.json"
PROMPTS = ["Once upon a time", "Lily and Tom went to the park.", "The little dog"]
N_NEW_TOKENS = 96


def greedy_tokens(model_dir: Path, prompt: str, n_new_tokens: int) -> tuple[list[int], list[int], str]:
    """(prompt ids, new ids, new text) of transformers' greedy search in float32; an end token stops it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    ids = tokenizer(prompt, return_tensors="pt")
    with torch.inference_mode():
        output = model.generate(**ids, max_new_tokens=n_new_tokens, do_sample=False)
    n_prompt = ids["input_ids"].shape[1]
    new = output[0, n_prompt:].tolist()
    return ids["input_ids"][0].tolist(), new, tokenizer.decode(new, skip_special_tokens=True)


def main() -> None:
    entries = []
    for prompt in PROMPTS:
        prompt_ids, token_ids, text = greedy_tokens(MODEL, prompt, N_NEW_TOKENS)
        entries.append({"prompt": prompt, "prompt_token_ids": prompt_ids, "token_ids": token_ids, "text": text})
    GOLDEN.write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n")
    print(f"{GOLDEN}: {len(entries)} texts")


if __name__ == "__main__":
    main()
