"""What ptxas says of the GPU kernels in a build with LLM_DECODER_CUDA: registers, shared memory, stack and spills.

python tools/kernel_registers.py build-cuda [--json]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class KernelRegisters:
    """One kernel on one target, or a function of kernels that was not inlined (registers 0).

    shared_bytes: what the kernel declares; most is asked for at launch. stack_bytes: local memory of a thread, spilled
    registers included.
    """

    name: str
    target: str
    registers: int
    shared_bytes: int
    stack_bytes: int
    spill_store_bytes: int
    spill_load_bytes: int

    @property
    def uses_local_memory(self) -> bool:
        return bool(self.stack_bytes or self.spill_store_bytes or self.spill_load_bytes)


def read_build(build: Path) -> list[KernelRegisters]:
    """Of every kernel of the extension, by name and target. OSError if the folder is no finished build of it."""
    found = [kernel for report in read_reports(build) for kernel in read_report(report)]
    names = dict(zip((kernel.name for kernel in found), readable_names(kernel.name for kernel in found), strict=True))
    named = [dataclasses.replace(kernel, name=names[kernel.name]) for kernel in found]
    return sorted(named, key=lambda kernel: (kernel.name, kernel.target))


def read_reports(build: Path) -> list[str]:
    """What ptxas printed of each object of the extension. OSError if the folder is no finished build of it."""
    objects = (build / "kernel_objects.txt").read_text().split()
    return [Path(f"{path}.ptxas").read_text() for path in objects]


def read_remarks(text: str) -> list[str]:
    """Where ptxas did otherwise than the source says: waits between products (C7510 and its neighbours), registers that
    do not change hands (C7508). It calls that information, each with a code."""
    return re.findall(r"^ptxas info\s*: (\(C\d+\).*)", text, re.M)


def read_report(text: str) -> list[KernelRegisters]:
    """Of what ptxas -v printed. Names are as the linker knows them."""
    kernels: list[KernelRegisters] = []
    target = name = ""
    for line in text.splitlines():
        if match := re.search(r"Compiling entry function '\S+' for '(\S+)'", line):
            target = match[1]
        elif match := re.search(r"Function properties for (\S+)", line):
            name = match[1]
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            stack, stores, loads = (int(number) for number in match.groups())
            kernels.append(KernelRegisters(name, target, 0, 0, stack, stores, loads))
        elif match := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            kernels[-1] = dataclasses.replace(
                kernels[-1], registers=int(match[1]), shared_bytes=int(shared[1]) if shared else 0
            )
    return kernels


def readable_names(names: Iterable[str]) -> list[str]:
    """As a reader of the source would write them."""
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    return [shorten(name) for name in done.stdout.splitlines()]


def shorten(name: str) -> str:
    """`void a::kernel<a::Tile<a::Fp16, 64> >(a::Args)` to `kernel<Tile<Fp16, 64>>`."""
    name = re.sub(r"(llm_decoder|gpu|\(anonymous namespace\))::", "", name.removeprefix("void "))
    name = re.sub(r"\([^<>()]*\)$", "", name)
    return name.replace("> >", ">>").replace("> >", ">>")


def table(kernels: Sequence[KernelRegisters]) -> str:
    """A line a kernel: its registers on each target, then what it keeps in local memory."""
    targets = sorted({kernel.target for kernel in kernels}, key=lambda target: (len(target), target))
    by_name: dict[str, dict[str, KernelRegisters]] = {}
    for kernel in kernels:
        by_name.setdefault(kernel.name, {})[kernel.target] = kernel
    lines = [" ".join([*(f"{target:>7}" for target in targets), "kernel"])]
    for name, of_target in by_name.items():
        registers = [str(of_target[target].registers) if target in of_target else "-" for target in targets]
        local = ", ".join(f"{t}: {describe(k)}" for t, k in of_target.items() if k.uses_local_memory)
        lines.append(" ".join([*(f"{count:>7}" for count in registers), name]) + (f"  ({local})" if local else ""))
    return "\n".join(lines)


def describe(kernel: KernelRegisters) -> str:
    """What it keeps in local memory."""
    return (
        f"{kernel.stack_bytes} bytes of stack, {kernel.spill_store_bytes} stored and {kernel.spill_load_bytes} loaded"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path, help="a build folder with the extension")
    parser.add_argument("--json", action="store_true", help="a record a kernel and target")
    options = parser.parse_args()
    try:
        kernels = read_build(options.build)
    except OSError as error:
        parser.error(f"{options.build} is no finished build of the GPU extension (LLM_DECODER_CUDA=on): {error}")
    print(json.dumps([dataclasses.asdict(kernel) for kernel in kernels], indent=1) if options.json else table(kernels))


if __name__ == "__main__":
    main()
