"""The promises are judged with the servers, models and clients of other folders' tests."""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / name) for name in ("serving", "apps", "loading")]
