"""lm-evaluation-harness over tasks and data of this folder: log likelihoods of continuations, and answers."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["OPENAI_API_KEY"] = "secret"

import lm_eval
from asked import MODEL, N_TOKENS, tell, told
from lm_eval.tasks import TaskManager

STORIES, _ = told()
FOLDER = Path(sys.argv[3])
DOCUMENTS = [
    {
        "text": "Once upon a time there was a little",
        "choices": [" dog", " stone", " girl who liked to play"],
        "label": 0,
    },
    {"text": "The sun is", "choices": [" warm.", " cold and wet."], "label": 0},
]
CHOICES = f"""\
task: choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {FOLDER}/documents.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""
STORIES_TASK = f"""\
task: stories
dataset_path: json
dataset_kwargs: {{data_files: {{test: {FOLDER}/documents.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{text}}}}"
doc_to_target: "{{{{choices[0]}}}}"
generation_kwargs: {{until: ["zebra"], max_gen_toks: {N_TOKENS}, do_sample: false, temperature: 0}}
metric_list: [{{metric: exact_match}}]
"""


def evaluate(model: str, path: str, *tasks: str, **more: Any) -> dict[str, list[Any]]:
    """Task -> what the model answered to each request, in the order of documents."""
    arguments = {
        "model": MODEL,
        "base_url": f"{STORIES}{path}",
        "max_length": 1023,
        "max_retries": 1,
        "auth_token": "secret",
        **more,
    }
    found = lm_eval.simple_evaluate(
        model=model,
        model_args=arguments,
        tasks=list(tasks),
        task_manager=TaskManager(include_path=str(FOLDER), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
        apply_chat_template=model == "local-chat-completions",
    )
    samples = found["samples"]
    return {task: [sample["resps"] for sample in sorted(samples[task], key=lambda s: s["doc_id"])] for task in tasks}


(FOLDER / "documents.jsonl").write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS))
(FOLDER / "choices.yaml").write_text(CHOICES)
(FOLDER / "stories.yaml").write_text(STORIES_TASK)
completions = "/v1/completions"
tell(
    {
        "documents": DOCUMENTS,
        "completions": evaluate("local-completions", completions, "choices", "stories"),
        "in_batches": evaluate("local-completions", completions, "choices", batch_size=4),
        "chat": evaluate("local-chat-completions", "/v1/chat/completions", "stories"),
    }
)
