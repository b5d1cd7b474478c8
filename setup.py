"""Builds the compiled modules with CMake and lays the checkout's rooms out as one package, llm_decoder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
CORE = "llm_decoder._core"
ROOMS = [room for room in ("api", "web", "cli", "reranker", "config") if (ROOT / room / "__init__.py").exists()]


class CMakeBuild(build_ext):
    """Configures and builds the compiled modules, then copies each to where setuptools wants it: `_core`, `_cuda` where
    `LLM_DECODER_CUDA` (auto, on, off) asks for it, and for tests of a checkout `_cuda_host`, the GPU kernels without a
    GPU, where plain CMake has built it.

    `LLM_DECODER_BUILD_DIR` names a build folder to share with plain CMake; without it the build happens in setuptools'
    own temporary folder.
    """

    def build_extension(self, ext: Extension) -> None:
        if ext.name == CORE:  # the first
            self.build_modules()
        module = ext.name.rpartition(".")[2]
        destination = Path(self.get_ext_fullpath(ext.name))
        destination.unlink(missing_ok=True)  # one of an earlier build would be taken for this one's
        if module == "_cuda_host" and not self.editable_mode:
            return
        built = list((self.build_dir / "python" / "llm_decoder").glob(f"{module}.*so"))
        if not built and ext.optional:
            return
        if len(built) != 1:
            raise RuntimeError(f"[setup.py] expected one {module} module under {self.build_dir}, got {built}")
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(built[0], destination)

    @property
    def build_dir(self) -> Path:
        shared = os.environ.get("LLM_DECODER_BUILD_DIR")
        return Path(shared).resolve() if shared else Path(self.build_temp).resolve() / "cmake"

    def build_modules(self) -> None:
        shared = bool(os.environ.get("LLM_DECODER_BUILD_DIR"))
        options = [
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DLLM_DECODER_TESTS={'ON' if shared else 'OFF'}",
            f"-DLLM_DECODER_CUDA={os.environ.get('LLM_DECODER_CUDA', 'auto')}",
            "-DCMAKE_BUILD_TYPE=Release",
        ]
        cmake = find_cmake()
        subprocess.run([cmake, "-S", str(ROOT), "-B", str(self.build_dir), *options], check=True)
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or count_jobs()
        subprocess.run([cmake, "--build", str(self.build_dir), "-j", jobs, "--target", "python_modules"], check=True)


class TaggedWheel(bdist_wheel):
    """A wheel with the GPU kernels has a build tag, such as 1cuda13 of those that nvcc of CUDA 13 has compiled, so that
    it is told apart from one of the same version without them. No tag of the version: that would have to be known
    before anything is built.
    """

    def run_command(self, command: str) -> None:
        super().run_command(command)
        if command != "build":
            return
        build = self.get_finalized_command("build_ext")
        if Path(build.get_ext_fullpath("llm_decoder._cuda")).exists():
            version = (build.build_dir / "cuda_version.txt").read_text(encoding="ascii")
            self.build_number = f"1cuda{version.partition('.')[0]}"


def count_jobs() -> str:
    """How many compilers at once."""
    script = ["sh", str(ROOT / "tools" / "count_jobs.sh")]
    return subprocess.run(script, check=True, capture_output=True, text=True).stdout.strip()


def find_cmake() -> str:
    """The cmake beside this interpreter (pip installs one as a build requirement), else the one on PATH."""
    beside = Path(sys.executable).parent / "cmake"
    found = str(beside) if beside.exists() else shutil.which("cmake")
    if found is None:
        raise RuntimeError("[setup.py] cmake >= 3.21 is needed: pip install cmake")
    return found


packages = find_packages("python", include=["llm_decoder", "llm_decoder.*"])
for room in ROOMS:
    packages += [f"llm_decoder.{room}"] + [f"llm_decoder.{room}.{name}" for name in find_packages(room)]

setup(
    packages=packages,
    package_dir={"": "python"} | {f"llm_decoder.{room}": room for room in ROOMS},
    package_data={
        "llm_decoder": ["py.typed", "*.pyi", "embedded/**/*"],
        "llm_decoder.config": ["*.yaml", "*.json"],
        "llm_decoder.web": ["templates/*", "static/*"],
        "llm_decoder.reranker": ["templates/*"],
    },
    ext_modules=[
        Extension(CORE, sources=[]),
        Extension("llm_decoder._cuda", sources=[], optional=True),
        Extension("llm_decoder._cuda_host", sources=[], optional=True),
    ],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": TaggedWheel},
)
