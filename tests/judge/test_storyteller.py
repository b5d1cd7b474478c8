"""The embedded model against live transformers: it loads there too, and the stored golden is what it says today."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
pytestmark = pytest.mark.judge
GOLDENS = json.loads((ROOT / "tests" / "goldens" / "storyteller.json").read_text())


@pytest.mark.parametrize("golden", GOLDENS, ids=lambda golden: golden["prompt"])
def test_transformers_tells_the_golden_text(golden: dict) -> None:
    from make_golden_text import MODEL, greedy_tokens

    prompt_ids, token_ids, text = greedy_tokens(MODEL, golden["prompt"], len(golden["token_ids"]))
    assert (prompt_ids, token_ids, text) == (golden["prompt_token_ids"], golden["token_ids"], golden["text"])
