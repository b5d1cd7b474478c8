"""The floors that import-linter cannot see: who reaches the compiled core, and what C++ may include."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("python/llm_decoder", "cli", "config", "api", "web", "reranker")
MAY_INCLUDE = {
    "include": set(),
    "kv_cache": {"include"},
    "attention_cpu": {"include"},
    "attention": {"include"},
    "decoder": {"include", "attention"},
    "src": {"include", "attention", "decoder"},
}  # own folder aside; the CPU's kernels, the cache and the decoders meet through include/ only


def imported_modules(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_only_backends_reaches_the_compiled_core() -> None:
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    reaching = {path.relative_to(ROOT).as_posix() for path in files if "llm_decoder._core" in imported_modules(path)}
    assert reaching == {"python/llm_decoder/backends.py"}


@pytest.mark.parametrize("room", MAY_INCLUDE)
def test_a_room_of_cpp_includes_only_lower_floors(room: str) -> None:
    owners = {path.name: path.relative_to(ROOT).parts[0] for name in MAY_INCLUDE for path in (ROOT / name).rglob("*.h")}
    files = [path for pattern in ("*.h", "*.cpp") for path in (ROOT / room).rglob(pattern)]
    assert files
    for path in files:
        for included in re.findall(r'#include "([^"]+)"', path.read_text()):
            owner = owners[Path(included).name]
            assert owner in MAY_INCLUDE[room] | {room}, f"{path.relative_to(ROOT)} includes {included} of {owner}"


def test_every_room_of_the_architecture_page_is_in_a_clone() -> None:
    table = (ROOT / "docs/architecture.md").read_text().partition("## The rooms")[2].partition("## ")[0]
    rooms = [room for cell in re.findall(r"^\|[^|]*\| `([^`]+)`", table, re.M) for room in cell.split()]
    assert {"api/", "web/", "reranker/", "attention/", "decoder/", "tests/"} <= set(rooms)
    for room in rooms:
        assert any(path.is_file() for path in (ROOT / room).iterdir()), f"{room} is empty, which git does not keep"


def test_only_src_sees_python() -> None:
    for room in ("include", "kv_cache", "attention_cpu", "attention", "decoder"):
        for path in (ROOT / room).rglob("*"):
            if path.suffix in (".h", ".cpp"):
                assert not re.search(r"#include [<\"](pybind11|Python\.h)", path.read_text()), path
