"""HF transformers on a GPU, as it is fast: a static cache, and the decode step compiled into CUDA graphs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any


class TransformersOnGpu:
    """A causal model of this config with random weights. device: "cuda", or "cpu" for tests, where nothing is
    compiled."""

    def __init__(self, torch: Any, hf_config: Mapping[str, Any], device: str = "cuda") -> None:
        import transformers

        self.torch, self.transformers, self.device = torch, transformers, device
        config = transformers.AutoConfig.for_model(**hf_config)
        with torch.device(device):
            self.model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
        self.model.generation_config.eos_token_id = None
        self._n_sequences = 0

    def token_times(self, prompts: Any, n_new: int) -> list[float]:
        """When each of n_new tokens of all prompts, int64 [n_sequences, n_prompt], was there: seconds after the
        call."""
        if len(prompts) != self._n_sequences:  # graphs of other batches would be kept, and shapes made dynamic
            self.close()
            self._n_sequences = len(prompts)
        times = _Times()
        compiled = {}
        if self.device != "cpu":
            compiled = {
                "cache_implementation": "static",
                "compile_config": self.transformers.CompileConfig(mode="reduce-overhead", dynamic=False),
            }
        ids = self.torch.as_tensor(prompts, device=self.device)
        with self.torch.no_grad():
            self.model.generate(
                ids,
                attention_mask=self.torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=n_new,
                pad_token_id=0,
                streamer=times,
                **compiled,
            )
        return times.seconds[1:]  # the first is the prompt

    def close(self) -> None:
        """Lets what was compiled go."""
        self.torch._dynamo.reset()


class _Times:
    """What generate() calls a streamer, for batches too: it is handed every step's tokens, on the host."""

    def __init__(self) -> None:
        self.begin = time.perf_counter()
        self.seconds: list[float] = []

    def put(self, value: Any) -> None:
        self.seconds.append(time.perf_counter() - self.begin)

    def end(self) -> None:
        """Nothing is held back."""
