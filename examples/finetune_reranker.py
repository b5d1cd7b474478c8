"""From logged searches to a reranker: runs of the embedded model, labels by a rule, a tiny cross-encoder finetuned.

The rule stands for what you want of an answer and cannot write down: here, that somebody wants, likes or loves
something. Needs the extra [train]; the model is made on the spot, so nothing is fetched.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

from llm_decoder import LLM, SearchParams
from llm_decoder.errors import ConfigError
from llm_decoder.reranker.finetune import FinetuneParams, finetune, need_training_libraries
from llm_decoder.reranker.groups import read_groups
from llm_decoder.reranker.labels import label_by_rule, regex
from llm_decoder.search.run_file import run_lines

NAMES = ["Lily", "Tom", "Max", "Anna", "Ben", "Sara", "Tim", "Mia", "Jack", "Lucy"]
BEGINNINGS = [
    "One day, {} found a box.",
    "{} went to the park. There was",
    "Mom gave {} a big ball.",
    "{} saw a little dog.",
    "{} was at home. It was raining.",
    "{} went to the shop with Dad.",
]
PARAMS = SearchParams(method="sample", width=8, n=8, max_tokens=16, temperature=1.0, seed=0)


def log_runs(path: Path) -> None:
    """Eight samples for each prompt, as `llm-decoder search --runs` logs them."""
    prompts = [beginning.format(name) for beginning in BEGINNINGS for name in NAMES]
    with LLM() as llm, path.open("w", encoding="utf-8") as file:
        for output in llm.search(prompts, PARAMS):
            lines = run_lines(output, PARAMS, model=llm.name, tokenizer=llm.tokenizer, log_prompt=True)
            file.writelines(lines)


def make_encoder(folder: Path, texts: list[str]) -> None:
    """A random BERT of two layers that knows the words of the texts. Yours would be one that was trained already."""
    import tokenizers
    import torch
    import transformers

    tokenizer = tokenizers.BertWordPieceTokenizer(lowercase=True)
    tokenizer.train_from_iterator(texts, vocab_size=2000, min_frequency=1, show_progress=False)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=128,
        num_labels=1,
    )
    transformers.logging.disable_progress_bar()
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    transformers.BertTokenizerFast(tokenizer_object=tokenizer._tokenizer, model_max_length=128).save_pretrained(folder)


def main() -> None:
    try:
        need_training_libraries()
    except ConfigError as error:
        print("nothing is finetuned here:")
        print(error)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log_runs(folder / "runs.jsonl")
        groups, _ = read_groups(folder / "runs.jsonl")
        labelled = label_by_rule(groups, regex(r"\b(want|like|love)"))
        make_encoder(folder / "encoder", [text for group in groups for text in (group.query, *group.candidates)])
        params = FinetuneParams(loss="listwise", epochs=12, batch_size=8, learning_rate=2e-3, threads=1)
        report = finetune(labelled, folder / "encoder", folder / "reranker", params)
        assert report.evaluation is not None
        print(f"learnt from {report.n_learnt} groups, judged on {report.n_held_out} of other prompts")
        for figures in report.evaluation.scorers:
            print(f"{figures.name:16} the pick is right {figures.accuracy.mean:.2f}  MRR {figures.mrr.mean:.2f}")
        gain = report.evaluation.differences[0].mrr
        print(f"MRR, finetuned minus before: {gain.mean:+.2f}, 95 % between {gain.low:+.2f} and {gain.high:+.2f}")
        use(folder / "reranker")


def use(reranker: Path) -> None:
    """The best answer by log probability, and by the reranker alone."""
    with LLM(reranker=reranker) as llm:
        for scorer in ("logprob", "reranker"):
            params = replace(PARAMS, n=1, scorer=scorer, alpha=1.0)
            (output,) = llm.search("Zoe saw a big dog.", params)
            print(f"{scorer:16} {output.outputs[0].text!r}")


if __name__ == "__main__":
    main()
