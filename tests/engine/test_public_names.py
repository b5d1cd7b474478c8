import ast
import subprocess
import sys
from pathlib import Path

import pytest

import llm_decoder
from llm_decoder import errors


def test_public_names_are_sorted_as_ruff_sorts_them_and_all_exist():
    names = llm_decoder.__all__
    assert len(set(names)) == len(names)
    for name in names:
        assert getattr(llm_decoder, name) is not None
    assert set(errors.__all__) <= set(names)
    assert set(names) <= set(dir(llm_decoder))


def test_what_type_checkers_see_is_what_there_is():
    source = Path(llm_decoder.__file__).read_text(encoding="utf-8")
    seen = {
        alias.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("llm_decoder.")
        for alias in node.names
    }
    assert seen | {"__version__"} == set(llm_decoder.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = llm_decoder.nothing


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, llm_decoder, llm_decoder.errors;"
        "print(sorted({'numpy', 'tokenizers', 'llm_decoder._core'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
