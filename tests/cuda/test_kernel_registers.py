"""What nvcc made of the kernels, in the words of ptxas: every value of every thread is in a register."""

from __future__ import annotations

import re
import stat
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest
from kernel_registers import KernelRegisters, read_build, read_remarks, read_report, read_reports, shorten, table

ROOT = Path(__file__).parents[2]
KEEP_REPORT = ROOT / "cmake" / "keep_ptxas_report.sh"
MOST_REGISTERS = 255  # of a thread, on every device
MULTIPROCESSOR_REGISTERS = 65536
REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z3onev' for 'sm_80'
ptxas info    : Function properties for _Z3onev
    48 bytes stack frame, 44 bytes spill stores, 68 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 48 bytes cumulative stack size, 1024 bytes smem, 624 bytes cmem[0]
ptxas info    : Compile time = 12.3 ms
ptxas info    : Function properties for _Z6calledi
    16 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Compiling entry function '_Z3twov' for 'sm_90a'
ptxas info    : Function properties for _Z3twov
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 0 barriers
"""


@pytest.fixture(scope="module")
def kernels(cuda_build: Path) -> list[KernelRegisters]:
    return read_build(cuda_build)


def test_no_kernel_spills_a_register_or_keeps_an_array_in_memory(kernels: list[KernelRegisters]) -> None:
    assert kernels
    in_memory = [kernel for kernel in kernels if kernel.uses_local_memory]
    assert not in_memory, "\n" + table(in_memory)


def test_every_target_has_every_kernel(kernels: list[KernelRegisters]) -> None:
    names = defaultdict(set)
    for kernel in kernels:
        names[kernel.target].add(kernel.name)
    assert len({frozenset(of_target) for of_target in names.values()}) == 1


def test_every_kernel_of_the_sources_is_among_them(kernels: list[KernelRegisters]) -> None:
    sources = [path.read_text() for path in (ROOT / "attention").glob("*.h")]
    written = {name for source in sources for name in re.findall(r"^GPU_KERNEL (\w+)\(", source, re.M)}
    assert {"paged_flash_attention_kernel_fused", "small_product_kernel", "grouped_product_kernel"} <= written
    compiled = [kernel for kernel in kernels if kernel.name.partition("<")[0] in written]
    assert {kernel.name.partition("<")[0] for kernel in compiled} == written
    assert all(0 < kernel.registers <= MOST_REGISTERS for kernel in compiled)


def test_ptxas_does_what_the_sources_say(cuda_build: Path) -> None:
    remarks = [remark for report in read_reports(cuda_build) for remark in read_remarks(report)]
    assert not remarks, "\n".join(remarks)


def test_kernels_that_trade_registers_are_launched_with_what_they_count_on(kernels: list[KernelRegisters]) -> None:
    source = (ROOT / "attention" / "hopper_attention.h").read_text()
    (counted_on,) = {int(launched) for launched in re.findall(r"RegisterBudget\{(\d+),", source)}
    launched = [k for k in kernels if k.target == "sm_90a" and k.name.startswith("paged_flash_attention_kernel_hopper")]
    assert {kernel.registers for kernel in launched} <= {counted_on}


def test_the_largest_blocks_have_registers_enough(kernels: list[KernelRegisters]) -> None:
    source = (ROOT / "attention" / "held_row.h").read_text()
    n_threads = int(re.findall(r"kMaxRowThreads = (\d+);", source)[0])
    of_rows = [k for k in kernels if k.name.startswith(("norm_rows_kernel", "gated_quantized_rows_kernel"))]
    assert of_rows
    assert all(kernel.registers * n_threads <= MULTIPROCESSOR_REGISTERS for kernel in of_rows)


def test_a_remark_of_ptxas_is_read() -> None:
    remark = "(C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized"
    assert read_remarks(f"{REPORT}ptxas info    : {remark}\n{REPORT}") == [remark]
    assert read_remarks(REPORT) == []


def test_a_report_is_read_kernel_by_kernel() -> None:
    assert read_report(REPORT) == [
        KernelRegisters("_Z3onev", "sm_80", 255, 1024, 48, 44, 68),
        KernelRegisters("_Z6calledi", "sm_80", 0, 0, 16, 0, 0),
        KernelRegisters("_Z3twov", "sm_90a", 40, 0, 0, 0, 0),
    ]


def test_a_kernel_is_named_as_the_source_writes_it() -> None:
    name = "void llm_decoder::gpu::kernel<llm_decoder::gpu::Tile<llm_decoder::Bf16, 64> >(llm_decoder::gpu::Args)"
    assert shorten(name) == "kernel<Tile<Bf16, 64>>"
    assert shorten("llm_decoder::gpu::(anonymous namespace)::copy(llm_decoder::gpu::Args)") == "copy"


def test_the_table_has_a_line_a_kernel_and_says_what_is_in_memory() -> None:
    header, one, _, two = table(read_report(REPORT)).splitlines()
    assert header.split() == ["sm_80", "sm_90a", "kernel"]
    assert one.split(maxsplit=3) == ["255", "-", "_Z3onev", "(sm_80: 48 bytes of stack, 44 stored and 68 loaded)"]
    assert two.split() == ["-", "40", "_Z3twov"]


def compile_with(script: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Of the launcher around a compiler that is this script."""
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(f"#!/bin/sh\n{script}\n")
    nvcc.chmod(nvcc.stat().st_mode | stat.S_IXUSR)
    command = ["sh", str(KEEP_REPORT), str(nvcc), "-c", "a.cu", "-o", str(tmp_path / "a.o")]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_compiler_s_report_goes_beside_the_object_and_its_warnings_are_heard(tmp_path: Path) -> None:
    lines = "".join(
        f"echo '{line}' >&2\n" for line in ("ptxas info    : x", "a.cu(1): warning: y", "    0 bytes stack frame, z")
    )
    done = compile_with(lines, tmp_path)
    assert (done.returncode, done.stderr) == (0, "a.cu(1): warning: y\n")
    assert (tmp_path / "a.o.ptxas").read_text() == "ptxas info    : x\n    0 bytes stack frame, z\n"


def test_a_compiler_that_fails_leaves_no_report(tmp_path: Path) -> None:
    done = compile_with("echo 'ptxas info    : x' >&2\necho 'error: y' >&2\nexit 3", tmp_path)
    assert (done.returncode, done.stderr) == (3, "error: y\n")
    assert not list(tmp_path.glob("*.ptxas*"))
