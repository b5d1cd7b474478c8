"""What a user gets from `pip install .`, `pip install -e .`, the plain CMake build, and the checkout's own scripts."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
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
    """The Python of a fresh environment that holds the wheel."""
    python = make_environment(tmp_path_factory.mktemp("venv"))
    subprocess.run([str(python), "-m", "pip", "install", "-q", "--no-deps", "--no-index", str(wheel)], check=True)
    return python


def make_environment(place: Path) -> Path:
    """The Python of a fresh environment, with everything but llm_decoder borrowed from this one."""
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    python = place / "bin" / "python"
    site_packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=place).strip())
    (site_packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


@pytest.fixture(scope="module")
def fresh_checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, built as the README says and with nothing that was built before. Without the C++ tests:
    they have been compiled by the same words in the checkout's own build folder."""
    checkout = tmp_path_factory.mktemp("fresh") / "checkout"
    built = ("build*", "dist", "*.so", "*.egg-info", "__pycache__", ".?*")
    shutil.copytree(ROOT, checkout, ignore=shutil.ignore_patterns(*built))
    build = checkout / "build"
    build.mkdir()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    run("cmake", "..", "-DLLM_DECODER_TESTS=OFF", cwd=build, PATH=path)
    run("make", f"-j{os.cpu_count() or 1}", cwd=build, PATH=path)
    return checkout


def test_the_wheel_adds_exactly_one_top_level_name(wheel: Path) -> None:
    names = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"llm_decoder"}


def test_the_wheel_carries_no_machine_of_tests(wheel: Path) -> None:
    assert list((ROOT / "build/python/llm_decoder").glob("_cuda_host*.so"))
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if "_cuda_host" in name]


def test_the_wheel_carries_core_settings_and_embedded_models(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert any(re.fullmatch(r"llm_decoder/_core.*\.so", name) for name in names)
    assert "llm_decoder/embedded/storyteller/model.safetensors" in names
    assert "llm_decoder/embedded/reranker/model.safetensors" in names
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


def test_the_plain_cmake_build_of_a_fresh_checkout_is_a_whole_package(fresh_checkout: Path, tmp_path: Path) -> None:
    tree = fresh_checkout / "build" / "python"
    code = "import llm_decoder._core as core; print(core.__file__)"
    assert str(tree) in run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(tree))
    command = (sys.executable, "-m", "llm_decoder", "generate", "Once", "--max-tokens", "4")
    assert run(*command, cwd=tmp_path, PYTHONPATH=str(tree)).strip()


def test_an_editable_install_runs_the_checkout_s_own_files(fresh_checkout: Path, tmp_path: Path) -> None:
    python = make_environment(tmp_path / "venv")
    path = f"{python.parent}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    pip = (python, "-m", "pip")
    run(*pip, "uninstall", "-q", "-y", "setuptools", cwd=tmp_path)  # Python 3.11 brings one that is too old
    install = (*pip, "install", "-q", "--no-deps", "--no-build-isolation", "-e", ".")
    run(*install, cwd=fresh_checkout, PATH=path, LLM_DECODER_BUILD_DIR=str(fresh_checkout / "build"))
    code = "import llm_decoder, llm_decoder.cli, llm_decoder._core as c; print(llm_decoder.__file__, c.__file__)"
    code += "; print(llm_decoder.cli.__file__, llm_decoder.edited)"
    with (fresh_checkout / "python" / "llm_decoder" / "__init__.py").open("a") as file:
        file.write("edited = 'as edited'\n")
    output = run(python, "-c", code, cwd=tmp_path)
    assert output.count(str(fresh_checkout)) == 3
    assert "as edited" in output
    assert "0.1.0" in run(python.parent / "llm-decoder", "--version", cwd=tmp_path)


def test_requirements_txt_names_every_runtime_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert set(project["dependencies"]) <= set(lines)


def test_jinja_is_new_enough_to_hold_a_template_of_a_stranger() -> None:
    """Below 3.1.6 a template leaves the sandbox through the filter `attr` (CVE-2025-27516)."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (floor,) = (line.removeprefix("jinja2>=") for line in project["dependencies"] if line.startswith("jinja2>="))
    for version in (floor, importlib.metadata.version("jinja2")):
        assert tuple(int(part) for part in version.split(".")[:3]) >= (3, 1, 6)
