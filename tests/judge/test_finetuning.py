"""Finetuning with sentence-transformers on a task that can be learnt: candidates with a certain word are right.

The model is made on the spot, random and tiny.
"""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from llm_decoder import CrossEncoder
from llm_decoder.errors import ConfigError, UnsupportedModelError
from llm_decoder.reranker.evaluate import evaluate
from llm_decoder.reranker.finetune import FinetuneParams, finetune
from llm_decoder.reranker.groups import Group, group_line
from llm_decoder.reranker.metrics import measure

pytestmark = pytest.mark.judge
pytest.importorskip("sentence_transformers")
pytest.importorskip("datasets")
pytest.importorskip("accelerate")

ROOT = Path(__file__).parents[2]
WORDS = ["cat", "dog", "tree", "house", "river", "stone", "cloud", "bread", "happy", "sad", "big", "red", "runs"]
PARAMS = FinetuneParams(epochs=4, batch_size=8, learning_rate=3e-3, threads=1)


def make_groups(n: int, labels: tuple[float, ...] = (1, 0, 0, 0)) -> list[Group]:
    draw = random.Random(0)
    groups = []
    for number in range(n):
        texts = [" ".join(draw.choices([word for word in WORDS if word != "happy"], k=4)) for _ in labels]
        grades = list(labels)
        draw.shuffle(grades)
        candidates = [
            f"{text} happy" if grade == 1 else f"{text} big" for text, grade in zip(texts, grades, strict=True)
        ]
        groups.append(Group(f"{' '.join(draw.choices(WORDS, k=3))} {number}", tuple(candidates), tuple(grades)))
    return groups


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT with one label, of two layers of 32."""
    import tokenizers
    import torch
    import transformers

    torch.manual_seed(0)
    torch.set_num_threads(1)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = {word: number for number, word in enumerate([*special, *WORDS])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
        num_labels=1,
    )
    folder = tmp_path_factory.mktemp("base")
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    transformers.BertTokenizerFast(tokenizer_object=tokenizer, model_max_length=32).save_pretrained(folder)
    return folder


def weights(folder: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors")


def assert_same(left: Path, right: Path) -> None:
    first, second = weights(left), weights(right)
    assert first.keys() == second.keys()
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name], err_msg=name)


@pytest.mark.parametrize("loss", ["pairwise", "listwise", "pointwise"])
def test_what_can_be_learnt_is_learnt(base: Path, tmp_path: Path, loss: str) -> None:
    n_pairs = 32 if loss == "pointwise" else 8
    params = FinetuneParams(loss=loss, epochs=4, batch_size=n_pairs, learning_rate=3e-3, threads=1)  # type: ignore[arg-type]
    report = finetune(make_groups(150), base, tmp_path / "out", params)
    assert (report.n_learnt, report.n_held_out, report.n_left_out, report.n_truncated) == (120, 30, 0, 0)
    assert report.checkpoint is None
    assert np.mean(report.losses[-5:]) < 0.95 * np.mean(report.losses[:5])
    assert report.evaluation is not None
    scorers = {figures.name: figures for figures in report.evaluation.scorers}
    assert list(scorers) == ["finetuned", "before", "shortest", "longest", "chance"]
    assert scorers["finetuned"].mrr.mean > 0.95
    assert scorers["before"].mrr.mean < 0.8
    better = report.evaluation.differences[0]
    assert better.name == "before"
    assert better.mrr.low > 0


def test_the_folder_is_one_that_others_open(base: Path, tmp_path: Path) -> None:
    """transformers reads it and ranks as the report says; our cross-encoder reads it and scores the same."""
    import torch
    import transformers

    groups = make_groups(60)
    report = finetune(groups, base, tmp_path / "out", PARAMS)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()

    def score(query: str, candidates: object) -> list[float]:
        texts = list(candidates)  # type: ignore[call-overload]
        with torch.no_grad():
            inputs = tokenizer([query] * len(texts), texts, padding=True, return_tensors="pt")
            return model(**inputs).logits[:, 0].tolist()  # type: ignore[no-any-return]

    assert evaluate(groups, {"reread": score}, n_resamples=10).scorers[0].mrr.mean > 0.95
    ours = CrossEncoder(tmp_path / "out", quantization="none", threads=1)
    for group in groups[:10]:
        theirs = score(group.query, group.candidates)
        np.testing.assert_allclose(ours.score(group.query, list(group.candidates)), theirs, atol=1e-4)
    card = (tmp_path / "out" / "README.md").read_text()
    assert report.evaluation is not None
    assert f"| finetuned | {report.evaluation.scorers[0].accuracy.mean:.3f} (" in card
    assert "| finetuned - before |" in card


def test_the_same_seed_gives_the_same_model_and_another_seed_another(base: Path, tmp_path: Path) -> None:
    groups = make_groups(40)
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        finetune(groups, base, tmp_path / name, FinetuneParams(epochs=1, batch_size=8, seed=seed, threads=1))
    assert_same(tmp_path / "first", tmp_path / "again")
    with pytest.raises(AssertionError):
        assert_same(tmp_path / "first", tmp_path / "other")


@pytest.mark.parametrize("n_steps", [1, 7])
def test_a_run_that_is_stopped_and_resumed_ends_where_it_would_have(base: Path, tmp_path: Path, n_steps: int) -> None:
    """8 steps, 4 an epoch."""
    groups = make_groups(40)
    params = FinetuneParams(epochs=2, batch_size=8, learning_rate=1e-3, threads=1)
    straight = finetune(groups, base, tmp_path / "straight", params)
    steps: list[int] = []
    stopped = finetune(
        groups,
        base,
        tmp_path / "out",
        params,
        on_step=lambda step, n, loss: steps.append(step),
        should_stop=lambda: len(steps) == n_steps,
    )
    assert steps == list(range(1, n_steps + 1))
    assert stopped.checkpoint == tmp_path / "out" / "checkpoints" / f"checkpoint-{n_steps}"
    assert stopped.checkpoint.is_dir()
    assert stopped.evaluation is None
    assert not (tmp_path / "out" / "model.safetensors").exists()

    with pytest.raises(ConfigError, match=r"got other learning_rate"):
        finetune(groups, base, tmp_path / "out", FinetuneParams(epochs=2, batch_size=8, threads=1), resume=True)
    with pytest.raises(ConfigError, match=r"got other groups"):
        finetune(groups[1:], base, tmp_path / "out", params, resume=True)
    with pytest.raises(ConfigError, match=r"go on with it by --resume"):
        finetune(groups, base, tmp_path / "out", params)

    resumed = finetune(groups, base, tmp_path / "out", params, resume=True)
    assert_same(tmp_path / "straight", tmp_path / "out")
    assert resumed.losses == pytest.approx(straight.losses, abs=1e-6)
    assert resumed.evaluation == straight.evaluation


def test_what_is_too_long_is_counted(base: Path, tmp_path: Path) -> None:
    groups = [*make_groups(20), Group("long", ("cat " * 100, "dog"), (1, 0))]
    report = finetune(groups, base, tmp_path / "out", FinetuneParams(epochs=1, threads=1))
    assert report.n_truncated == 1


def test_an_encoder_without_a_head_gets_one(base: Path, tmp_path: Path) -> None:
    import transformers

    folder = tmp_path / "encoder"
    transformers.BertModel.from_pretrained(base).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    finetune(make_groups(20), folder, tmp_path / "out", FinetuneParams(epochs=1, threads=1))
    assert weights(tmp_path / "out")["classifier.weight"].shape == (1, 32)


def test_weights_that_only_a_pickle_has_are_refused(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    folder.mkdir()
    for path in base.iterdir():
        if path.suffix == ".json":
            (folder / path.name).write_bytes(path.read_bytes())
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(UnsupportedModelError, match="in safetensors"):
        finetune(make_groups(20), folder, tmp_path / "out", FinetuneParams(epochs=1, threads=1))


def test_a_model_whose_scores_are_no_numbers_is_refused(base: Path, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    folder = tmp_path / "broken"
    folder.mkdir()
    for path in base.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    broken = weights(base)
    broken["classifier.weight"] = np.full_like(broken["classifier.weight"], np.inf)
    save_file(broken, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UnsupportedModelError, match="finite scores"):
        finetune(make_groups(20), folder, tmp_path / "out", FinetuneParams(epochs=1, threads=1))


def test_a_loss_that_is_no_number_ends_the_run_with_a_remedy(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llm_decoder.reranker import training

    class Lost(training.RankNetLoss):
        def forward(self, *arguments: object, **options: object) -> object:
            return super().forward(*arguments, **options) * float("nan")

    monkeypatch.setitem(training._LOSSES, "pairwise", Lost)
    with pytest.raises(ConfigError, match=r"the loss is nan at step 1; take a lower learning rate"):
        finetune(make_groups(20), base, tmp_path / "out", FinetuneParams(epochs=1, threads=1))


def command(groups: Path, base: Path, out: Path, *more: str) -> list[str]:
    shape = ["--epochs", "25", "--batch-size", "8", "--checkpoint-steps", "25", "--threads", "1"]
    verb = [sys.executable, "-m", "llm_decoder", "finetune-reranker", str(groups)]
    return [*verb, "--model", str(base), "--out", str(out), *shape, *more]


def test_ctrl_c_keeps_a_checkpoint_and_the_command_goes_on(base: Path, tmp_path: Path) -> None:
    groups, out = tmp_path / "groups.jsonl", tmp_path / "out"
    groups.write_text("".join(map(group_line, make_groups(40))))
    with subprocess.Popen(command(groups, base, out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        while run.poll() is None and not list(out.glob("checkpoints/checkpoint-*/trainer_state.json")):
            time.sleep(0.05)
        run.send_signal(signal.SIGINT)
        told, complained = run.communicate(timeout=120)
    assert (run.returncode, told) == (130, ""), complained
    (path,) = re.findall(r"stopped at (\S+); the same command with --resume goes on from there", complained)
    assert (Path(path) / "model.safetensors").exists()
    assert "Traceback" not in complained

    resumed = subprocess.run(command(groups, base, out, "--resume", "--json"), capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    report = json.loads(resumed.stdout)
    assert report["n_learnt"] == 32
    assert [figures["name"] for figures in report["evaluation"]["scorers"]][:2] == ["finetuned", "before"]
    assert not (out / "checkpoints").exists()


def test_the_figures_stand_in_a_table(base: Path, tmp_path: Path) -> None:
    groups, out = tmp_path / "groups.jsonl", tmp_path / "out"
    groups.write_text("".join(map(group_line, [*make_groups(20), Group("equal", ("a", "b"), (1, 1))])))
    done = subprocess.run(command(groups, base, out, "--epochs", "1"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["SCORER", "ACCURACY", "MRR", "NDCG@10"] in lines
    assert ["finetuned", "minus", "ACCURACY", "MRR", "NDCG@10"] in lines
    assert f"{out}: learnt from 16 groups" in done.stdout
    assert "1 groups were left out" in done.stderr


def test_the_python_of_the_page_runs(base: Path, tmp_path: Path) -> None:
    (code,) = re.findall(r"^```py\n(.*?)^```", (ROOT / "docs" / "finetuning.md").read_text(), re.M | re.S)
    (tmp_path / "groups.jsonl").write_text("".join(map(group_line, make_groups(20))))
    (tmp_path / "path" / "to").mkdir(parents=True)
    (tmp_path / "path" / "to" / "cross-encoder").symlink_to(base)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Interval(mean=")
    assert (tmp_path / "my-reranker" / "model.safetensors").exists()


def test_ndcg_is_that_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    draw = np.random.default_rng(0)
    for _ in range(300):
        n = int(draw.integers(2, 12))
        labels, scores = draw.integers(0, 3, n) / 2, draw.integers(0, 5, n).astype(float)
        if len(set(labels)) == 1:
            continue
        for k in (1, 3, 10):
            theirs = metrics.ndcg_score([labels], [scores], k=k)
            assert measure(labels.tolist(), scores.tolist(), k)[2] == pytest.approx(theirs)
