"""What a user gets from `pip install .`, from the plain CMake build, and from the checkout's own scripts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.packaging


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Standard output of a command in a bare environment; fails with everything that it printed."""
    env = {"PATH": os.environ["PATH"], "HOME": str(cwd), "TERM": "dumb"} | environment
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    pip += ["-w", str(folder), str(ROOT)]
    environment = os.environ | {"LLM_DECODER_BUILD_DIR": str(ROOT / "build")}
    done = subprocess.run(pip, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("llm_decoder-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh environment that holds the wheel; its dependencies are borrowed from this one."""
    place = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    python = place / "bin" / "python"
    subprocess.run([str(python), "-m", "pip", "install", "-q", "--no-deps", "--no-index", str(wheel)], check=True)
    site_packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=place).strip())
    (site_packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def test_the_wheel_adds_exactly_one_top_level_name(wheel: Path) -> None:
    names = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"llm_decoder"}


def test_the_wheel_carries_core_settings_and_embedded_model(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert any(re.fullmatch(r"llm_decoder/_core.*\.so", name) for name in names)
    assert "llm_decoder/embedded/storyteller/model.safetensors" in names
    assert "llm_decoder/config/runtime_config.yaml" in names
    assert "llm_decoder/py.typed" in names


def test_the_wheel_needs_no_torch_at_run_time(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith("METADATA"))
        requirements = re.findall(r"^Requires-Dist: (.*)$", archive.read(metadata).decode(), re.M)
    required = [line for line in requirements if "extra ==" not in line]
    assert required
    assert not [line for line in required if re.match(r"(torch|transformers)\b", line)]


def test_an_installed_package_imports_from_another_folder(installed: Path, tmp_path: Path) -> None:
    code = "import llm_decoder, llm_decoder.engine; print(llm_decoder.__file__)"
    path = Path(run(installed, "-c", code, cwd=tmp_path).strip())
    assert installed.parents[1] in path.parents


def test_the_console_script_and_the_module_are_the_same_program(installed: Path, tmp_path: Path) -> None:
    version = run(installed.parent / "llm-decoder", "--version", cwd=tmp_path)
    assert version == run(installed, "-m", "llm_decoder", "--version", cwd=tmp_path)
    assert "0.1.0" in version


def test_scripts_run_from_a_checkout_use_the_installed_package_once(installed: Path, tmp_path: Path) -> None:
    code = (
        "import runpy, sys; sys.argv = ['cli/generate_cli.py', '--help']\n"
        "try: runpy.run_path('cli/generate_cli.py', run_name='__main__')\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "import llm_decoder; print(llm_decoder.__file__)\n"
        "assert not [name for name in sys.modules if name.split('.')[0] in ('cli', 'config', 'api', 'web')]\n"
    )
    environment = {"HOME": str(tmp_path)}
    output = run(installed, "-c", code, cwd=ROOT, **environment)
    assert str(installed.parents[1]) in output.splitlines()[-1]


def test_the_plain_cmake_build_is_a_whole_package(tmp_path: Path) -> None:
    tree = ROOT / "build" / "python"
    code = "import llm_decoder.backends as b, llm_decoder._core as c; print(c.__file__); print(c.isas())"
    output = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(tree))
    assert str(tree) in output


def test_requirements_txt_names_every_runtime_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert set(project["dependencies"]) <= set(lines)
