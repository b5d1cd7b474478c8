"""How a cross-encoder learns: sentence-transformers and torch, of the extra [train]. To be imported where it is used.

Losses, each over one label: RankNet (Burges et al., Learning to Rank using Gradient Descent, ICML 2005), ListNet (Cao
et al., Learning to Rank: From Pairwise Approach to Listwise Approach, ICML 2007), and binary cross entropy.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from datasets import Dataset
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss, ListNetLoss, RankNetLoss
from transformers.trainer_utils import get_last_checkpoint

from llm_decoder.errors import ConfigError, UnsupportedModelError
from llm_decoder.reranker.groups import Group

if TYPE_CHECKING:
    from llm_decoder.reranker.finetune import FinetuneParams

__all__ = ["Trainee", "quietly"]

_LOSSES = {"pairwise": RankNetLoss, "listwise": ListNetLoss, "pointwise": BinaryCrossEntropyLoss}
_WARMUP_SHARE = 0.1
_N_LOGGED = 200
_N_CHECKPOINTS = 2
_SCORED_AT_A_TIME = 64

OnStep = Callable[[int, int, float | None], None]


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without the libraries' own bars and remarks: whoever called shows what there is to see."""
    verbosity = transformers.logging.get_verbosity()
    had_bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if had_bars:
            transformers.logging.enable_progress_bar()


class Trainee:
    """A cross-encoder while it learns. Raises UnsupportedModelError when the folder holds nothing that can.

    A folder without a head for one label gets a new one, drawn by the seed.
    """

    def __init__(self, folder: Path, params: FinetuneParams) -> None:
        if params.threads is not None:
            torch.set_num_threads(params.threads)
        transformers.set_seed(params.seed)
        try:
            self.model = CrossEncoder(
                str(folder),
                num_labels=1,
                max_length=params.max_length,
                local_files_only=True,
                model_kwargs={"use_safetensors": True, "dtype": torch.float32},
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise UnsupportedModelError(
                f"[{folder}] need a cross-encoder, or an encoder that can become one, in safetensors; {error}"
            ) from error
        self.params = params
        self._folder = folder

    def n_truncated(self, groups: Sequence[Group]) -> int:
        """Pairs of a query and a candidate that are longer than what the model reads."""
        tokenizer = self.model.tokenizer
        n_found = 0
        for group in groups:
            pairs = tokenizer([group.query] * len(group.candidates), list(group.candidates), truncation=False)
            n_found += sum(len(ids) > tokenizer.model_max_length for ids in pairs["input_ids"])
        return n_found

    def scores(self, groups: Sequence[Group]) -> list[npt.NDArray[np.float32]]:
        """Raw logits, float32 [n_candidates], of each group. Raises UnsupportedModelError where one is not finite."""
        pairs = [(group.query, candidate) for group in groups for candidate in group.candidates]
        logits = self.model.predict(
            pairs, batch_size=_SCORED_AT_A_TIME, show_progress_bar=False, activation_fn=torch.nn.Identity()
        )
        if not np.isfinite(logits).all():
            raise UnsupportedModelError(f"[{self._folder}] need a model that gives finite scores, got NaN or infinity")
        ends = np.cumsum([len(group.candidates) for group in groups])[:-1]
        return np.split(np.asarray(logits, np.float32), ends)

    def learn(
        self, groups: Sequence[Group], checkpoints: Path, on_step: OnStep | None, should_stop: Callable[[], bool] | None
    ) -> tuple[list[float], Path | None]:
        """Goes on from the last of the checkpoints. Returns the losses on the way, and where it is kept when it was
        stopped before the end. Raises ConfigError when the loss is no number any more."""
        params = self.params
        arguments = CrossEncoderTrainingArguments(
            output_dir=str(checkpoints),
            num_train_epochs=params.epochs,
            per_device_train_batch_size=params.batch_size,
            learning_rate=params.learning_rate,
            warmup_steps=_WARMUP_SHARE,
            seed=params.seed,
            data_seed=params.seed,
            save_strategy="steps",
            save_steps=params.checkpoint_steps,
            save_total_limit=_N_CHECKPOINTS,
            logging_strategy="steps",
            logging_steps=1 / _N_LOGGED,
            logging_nan_inf_filter=False,
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = CrossEncoderTrainer(
            model=self.model,
            args=arguments,
            train_dataset=_dataset(groups, params.loss),
            loss=_LOSSES[params.loss](self.model),
            callbacks=[_Watch(on_step, should_stop)],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        last = get_last_checkpoint(str(checkpoints)) if checkpoints.exists() else None
        trainer.train(resume_from_checkpoint=last)
        state = trainer.state
        losses = [float(entry["loss"]) for entry in state.log_history if "loss" in entry]
        if state.global_step < state.max_steps:
            return losses, checkpoints / f"checkpoint-{state.global_step}"
        return losses, None

    def save(self, folder: Path) -> None:
        """As a plain Hugging Face folder: config.json, model.safetensors and the tokenizer."""
        self.model[0].auto_model.save_pretrained(str(folder))
        self.model.tokenizer.save_pretrained(str(folder))


class _Watch(transformers.TrainerCallback):
    """Tells of each step, stops where it is asked to and keeps what is there, and looks at the loss."""

    def __init__(self, on_step: OnStep | None, should_stop: Callable[[], bool] | None) -> None:
        self._on_step = on_step
        self._should_stop = should_stop
        self._loss: float | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._on_step is not None:
            self._on_step(state.global_step, state.max_steps, self._loss)
        if self._should_stop is not None and self._should_stop():
            control.should_save = control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs is None or "loss" not in logs:
            return
        self._loss = logs["loss"]
        for name in ("loss", "grad_norm"):  # some losses leave out what is no number, gradients do not
            if not math.isfinite(logs.get(name, 0.0)):
                raise ConfigError(
                    f"[finetune] the {name} is {logs[name]} at step {state.global_step}; take a lower learning rate"
                )


def _dataset(groups: Sequence[Group], loss: str) -> Dataset:
    if loss == "pointwise":
        rows = [
            (group.query, candidate, grade)
            for group in groups
            for candidate, grade in zip(group.candidates, group.grades, strict=True)
        ]
        queries, candidates, grades = zip(*rows, strict=True)
        return Dataset.from_dict({"query": queries, "candidate": candidates, "label": grades})
    return Dataset.from_dict(
        {
            "query": [group.query for group in groups],
            "candidates": [list(group.candidates) for group in groups],
            "labels": [list(group.grades) for group in groups],
        }
    )
