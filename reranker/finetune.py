"""A cross-encoder finetuned on labelled groups, and judged on groups that it has not seen."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llm_decoder.encoders.families import FAMILIES
from llm_decoder.errors import ConfigError, ModelNotFoundError, UnsupportedModelError
from llm_decoder.reranker.card import write_card
from llm_decoder.reranker.evaluate import Evaluation, Scorer, evaluate
from llm_decoder.reranker.groups import Group, group_line, split_by_query

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["FinetuneParams", "FinetuneReport", "Loss", "check_model", "finetune", "need_training_libraries"]

Loss = Literal["pairwise", "listwise", "pointwise"]
LOSSES: tuple[Loss, ...] = ("pairwise", "listwise", "pointwise")

_LIBRARIES = ("sentence_transformers", "datasets", "accelerate")
_STARTED = "finetune.json"
_CHECKPOINTS = "checkpoints"


@dataclass(frozen=True, kw_only=True)
class FinetuneParams:
    """How a reranker learns. Raises ConfigError for a value that cannot be.

    loss: "pairwise" compares the candidates of a group two by two, "listwise" all of them together, "pointwise" looks
        at each alone. batch_size: groups a step; pairs of query and candidate for pointwise.
    learning_rate: of AdamW, rises over the first tenth of the steps and falls to 0 at the last.
    seed: of the split, a new head, the order of the groups and dropout: the same seed gives the same model on the same
        machine with the same number of threads.
    eval_share: of the queries that are held out. max_length: tokens of a pair, None = the model's; what is longer is
        cut. checkpoint_steps: steps between checkpoints. threads: that compute, None = torch's choice.
    """

    loss: Loss = "pairwise"
    epochs: int = 3
    batch_size: int = 16
    learning_rate: float = 2e-5
    seed: int = 0
    eval_share: float = 0.2
    max_length: int | None = None
    checkpoint_steps: int = 200
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ConfigError(f"[loss] need one of {', '.join(LOSSES)}, got {self.loss!r:.40}")
        for name in ("epochs", "batch_size", "checkpoint_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"[{name}] need 1 or more, got {getattr(self, name)}")
        for name in ("max_length", "threads"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"[{name}] need 1 or more, got {getattr(self, name)}")
        if not 0 < self.learning_rate < 1:
            raise ConfigError(f"[learning_rate] need a number between 0 and 1, got {self.learning_rate}")
        if not 0 < self.eval_share < 1:
            raise ConfigError(f"[eval_share] need a number between 0 and 1, got {self.eval_share}")


@dataclass(frozen=True)
class FinetuneReport:
    """What came of it. checkpoint: where it was stopped before its end, then there is no evaluation and no model yet.

    n_left_out: groups without two labels that differ. n_truncated: pairs of query and candidate that were cut.
    losses: the mean loss of each of the parts, at most some 200, that the steps are cut into. evaluation: on the groups
    held out, of "finetuned", then "before", then the baselines.
    """

    out: Path
    checkpoint: Path | None
    n_learnt: int
    n_held_out: int
    n_left_out: int
    n_truncated: int
    losses: tuple[float, ...]
    evaluation: Evaluation | None
    elapsed_s: float


def need_training_libraries() -> None:
    """Raises ConfigError where the extra [train] is not installed."""
    missing = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"[finetune] need {', '.join(_LIBRARIES)} to finetune, got no {', '.join(missing)}; "
            "pip install 'llm_decoder[train]'"
        )


def finetune(
    groups: Sequence[Group],
    model: Path,
    out: Path,
    params: FinetuneParams | None = None,
    *,
    resume: bool = False,
    on_step: Callable[[int, int, float | None], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> FinetuneReport:
    """Finetunes the cross-encoder in the folder `model` and writes it to the folder `out`: model.safetensors, the
    tokenizer, and a README card with its figures on the queries that were held out.

    on_step(step, n_steps, loss) is called after each step; the loss is the last one known. Where should_stop() is true
    after a step, a checkpoint is written and the report says where; `resume` goes on from the last checkpoint in `out`,
    with the same groups, model and params, to the same result as without the stop.

    Raises ConfigError where the extra [train] is not installed, `out` has something in it that is not resumed or
    another run's, or the groups do not suffice; ModelNotFoundError and UnsupportedModelError for the folder `model`.
    """
    started = time.monotonic()
    params = params or FinetuneParams()
    need_training_libraries()
    check_model(model)
    usable = [group for group in (group.labelled_part() for group in groups) if group.has_order]
    if not usable:
        raise ConfigError(
            f"[groups] need groups with labels of which one is higher than another, got none in {len(groups)}; "
            "label some first"
        )
    learnt, held_out = split_by_query(usable, params.eval_share, params.seed)
    _begin(out, _identity(usable, model, params), resume)

    from llm_decoder.reranker.training import Trainee, quietly

    with quietly():
        trainee = Trainee(model, params)
        n_truncated = trainee.n_truncated(usable)
        before = trainee.scores(held_out)
        losses, checkpoint = trainee.learn(learnt, out / _CHECKPOINTS, on_step, should_stop)
        evaluation = None
        if checkpoint is None:
            evaluation = _compare(held_out, trainee.scores(held_out), before)
            trainee.save(out)
    report = FinetuneReport(
        out,
        checkpoint,
        len(learnt),
        len(held_out),
        len(groups) - len(usable),
        n_truncated,
        tuple(losses),
        evaluation,
        time.monotonic() - started,
    )
    if evaluation is not None:
        write_card(out, model.name, asdict(params), report.n_learnt, evaluation)
        shutil.rmtree(out / _CHECKPOINTS, ignore_errors=True)
        (out / _STARTED).unlink()
    return report


def check_model(folder: Path) -> None:
    """Raises ModelNotFoundError where there is no model, UnsupportedModelError for one of another family."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelNotFoundError(
            f"[{folder}] need the folder of an encoder with its config.json, got {error}"
        ) from error
    family = config.get("model_type") if isinstance(config, dict) else None
    if family not in FAMILIES:
        raise UnsupportedModelError(
            f"[{folder}] need an encoder of one of {', '.join(FAMILIES)}, got model_type {family!r:.40}"
        )


def _identity(groups: Sequence[Group], model: Path, params: FinetuneParams) -> dict[str, Any]:
    """What must be the same for a run that goes on. The number of threads may change."""
    digest = hashlib.sha256()
    for group in groups:
        digest.update(group_line(group).encode())
    given = asdict(params)
    del given["threads"]
    return {"model": str(model.resolve()), "groups": digest.hexdigest(), **given}


def _begin(out: Path, identity: dict[str, Any], resume: bool) -> None:
    started = out / _STARTED
    if resume:
        if not started.exists():
            raise ConfigError(f"[{out}] need a run that was stopped, got none to resume; leave --resume out")
        before = json.loads(started.read_text(encoding="utf-8"))
        changed = [name for name in identity if identity[name] != before.get(name)]
        if changed:
            raise ConfigError(
                f"[{out}] need what the run was begun with to resume it, got other {', '.join(changed)}; "
                "give the same, or another --out"
            )
        return
    if out.exists() and any(out.iterdir()):
        hint = "go on with it by --resume, or " if started.exists() else ""
        raise ConfigError(f"[{out}] need an empty folder, got one with files; {hint}name another --out")
    out.mkdir(parents=True, exist_ok=True)
    started.write_text(json.dumps(identity) + "\n", encoding="utf-8")


def _compare(
    groups: Sequence[Group],
    after: Sequence[npt.NDArray[np.float32]],
    before: Sequence[npt.NDArray[np.float32]],
) -> Evaluation:
    def known(scores: Sequence[npt.NDArray[np.float32]]) -> Scorer:
        by_group = {(group.query, group.candidates): values for group, values in zip(groups, scores, strict=True)}
        return lambda query, candidates: by_group[query, tuple(candidates)]

    return evaluate(groups, {"finetuned": known(after), "before": known(before)})
