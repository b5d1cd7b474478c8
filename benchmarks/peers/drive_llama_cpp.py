"""llama.cpp through the low-level API of llama-cpp-python (LLAMA_CPP_LIB_PATH: the folder of libllama).

The same calls as its own llama-bench and llama-batched-bench make, in a process that stays: llama_decode on batches of
2048 and micro-batches of 512, KV in f16, flash attention as it chooses, the next token without sampling.
"""

from __future__ import annotations

import argparse
import re
import time

import llama_cpp.llama_cpp as llama
from worker import Arrivals, serve

N_BATCH, N_UBATCH = 2048, 512


class LlamaCpp:
    def __init__(self, args: argparse.Namespace) -> None:
        llama.llama_backend_init()
        self._model = llama.llama_model_load_from_file(args.model.encode(), llama.llama_model_default_params())
        if not self._model:
            raise SystemExit(f"llama.cpp cannot load {args.model}")
        self._threads = args.threads
        self._context = None
        self._n_ctx = 0
        self._layout = (0, False)  # sequences, whether they share one KV buffer
        self._held: list[list[int]] = []  # the tokens whose keys and values each sequence of the context has
        self._batch = llama.llama_batch_init(N_BATCH, 0, 1)
        self.versions = args.version
        self.config = (
            f"llama_decode, n_batch {N_BATCH}, n_ubatch {N_UBATCH}, KV f16, flash attention auto, {cpu_features()}"
        )

    def generate(self, prompts: list[list[int]], n_generate: int, reuse: bool) -> Arrivals:
        start = time.perf_counter()
        n_shared = common_length(prompts) if len(prompts) > 1 else 0
        self._make_room(len(prompts), len(prompts[0]) + n_generate, unified=n_shared > 0)
        memory = llama.llama_get_memory(self._context)
        if not reuse:
            llama.llama_memory_clear(memory, False)
            self._held = [[] for _ in prompts]
        if n_shared and self._held[0][:n_shared] != prompts[0][:n_shared]:
            llama.llama_memory_clear(memory, False)
            self._compute([(token, i, 0, False) for i, token in enumerate(prompts[0][:n_shared])])
            for i in range(1, len(prompts)):
                llama.llama_memory_seq_cp(memory, 0, i, -1, -1)
            self._held = [prompt[:n_shared] for prompt in prompts]
        items = []
        for i, prompt in enumerate(prompts):
            n_kept = min(common_length([self._held[i], prompt]), len(prompt) - 1)
            llama.llama_memory_seq_rm(memory, i, n_kept, -1)
            items += [(prompt[j], j, i, j == len(prompt) - 1) for j in range(n_kept, len(prompt))]
        self._compute(items)
        self._held = [list(prompt) for prompt in prompts]
        arrivals = [[time.perf_counter() - start] for _ in prompts]
        for step in range(n_generate - 1):
            self._compute([(300 + step, len(prompt) + step, i, True) for i, prompt in enumerate(prompts)])
            now = time.perf_counter() - start
            for times in arrivals:
                times.append(now)
        return arrivals

    def _make_room(self, n_sequences: int, n_tokens: int, unified: bool) -> None:
        """A context with n_tokens for each sequence; one that is there and fits is kept, with what it holds."""
        if self._layout == (n_sequences, unified) and self._n_ctx >= n_sequences * n_tokens:
            return
        if self._context:
            llama.llama_free(self._context)
        params = llama.llama_context_default_params()
        self._n_ctx = n_sequences * -(-n_tokens // 256) * 256
        params.n_ctx, params.n_batch, params.n_ubatch = self._n_ctx, N_BATCH, N_UBATCH
        params.n_seq_max, params.kv_unified = n_sequences, unified
        params.n_outputs_max = params.n_outputs_max_per_seq = 0
        params.n_threads = params.n_threads_batch = self._threads
        self._context = llama.llama_init_from_model(self._model, params)
        if not self._context:
            raise MemoryError(f"llama.cpp makes no context of {self._n_ctx} tokens")
        self._layout, self._held = (n_sequences, unified), [[] for _ in range(n_sequences)]

    def _compute(self, items: list[tuple[int, int, int, bool]]) -> None:
        """items: (token, position, sequence, whether its logits are asked for)."""
        for begin in range(0, len(items), N_BATCH):
            part = items[begin : begin + N_BATCH]
            self._batch.n_tokens = len(part)
            for j, (token, position, sequence, wanted) in enumerate(part):
                self._batch.token[j] = token
                self._batch.pos[j] = position
                self._batch.n_seq_id[j] = 1
                self._batch.seq_id[j][0] = sequence
                self._batch.logits[j] = wanted
            status = llama.llama_decode(self._context, self._batch)
            if status:
                raise RuntimeError(f"llama_decode: {status}")
        llama.llama_synchronize(self._context)


def cpu_features() -> str:
    """What of this CPU the loaded libllama was built to use, in its own names."""
    return " ".join(re.findall(r"(\w+) = 1", llama.llama_print_system_info().decode()))


def common_length(sequences: list[list[int]]) -> int:
    """How many tokens all have in common at their beginning."""
    n = 0
    for column in zip(*sequences, strict=False):
        if len(set(column)) > 1:
            break
        n += 1
    return n


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--version", required=True, help="what to note in the results: tree, compiler, options")
    serve(LlamaCpp, parser)
