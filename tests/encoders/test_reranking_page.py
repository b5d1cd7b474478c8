"""docs/reranking.md: its Python runs, its families are those that are read."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

from encoder_factory import make_encoder

from llm_decoder.encoders.families import FAMILIES

PAGE = (Path(__file__).parents[2] / "docs" / "reranking.md").read_text(encoding="utf-8")


def test_the_code_of_the_page_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    folders = {
        "path/to/cross-encoder": make_encoder(tmp_path / "cross", "distilbert"),
        "path/to/sentence-encoder": make_encoder(tmp_path / "sentences", "roberta", head=False),
    }
    for code in blocks:
        for name, folder in folders.items():
            code = code.replace(name, str(folder))
        with contextlib.redirect_stdout(io.StringIO()) as shown:
            names: dict[str, object] = {}
            exec(code, names)  # noqa: S102 - the page's own text
        assert "vectors" in names or len(shown.getvalue().splitlines()) == 2
    assert len(blocks) == 2


def test_the_page_lists_every_family() -> None:
    table = PAGE.partition("| `model_type` |")[2].partition("\n\n")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`([\w-]+)`", " ".join(rows))) == set(FAMILIES)
