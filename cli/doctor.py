"""llm-decoder doctor: whether everything that a model needs is there and works."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from llm_decoder.cli._options import ConfigFlag, JsonFlag
from llm_decoder.cli._output import emit_json, emit_line, plain


def doctor(
    *,
    config: ConfigFlag = None,
    cache_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", envvar="LLM_DECODER_CACHE_DIR", show_envvar=False, help="The folder of packed weights."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            envvar="LLM_DECODER_MODEL",
            show_envvar=False,
            help="Say whether this one fits: folder or hub id.",
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            envvar="LLM_DECODER_DEVICE",
            show_envvar=False,
            help="Where it should run [the first it fits].",
        ),
    ] = None,
    quantization: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", envvar="LLM_DECODER_QUANTIZATION", show_envvar=False, help="Of its weights [auto]."
        ),
    ] = None,
    port: Annotated[int | None, typer.Option(metavar="N", min=1, max=65535, help="The port to look at.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Read no packed weights and compute nothing.")] = False,
    as_json: JsonFlag = False,
) -> int:
    """Look at this machine and installation, and say what is wrong.

    Exit code 1 where something has failed. What is printed has no keys, prompts or names of users: it can stand in a
    report.
    """
    import llm_decoder
    from llm_decoder.cli._checkup import Asked, examine

    asked = Asked(model, device or "auto", quantization or "auto")
    findings = []
    if not as_json:
        emit_line(f"llm-decoder {llm_decoder.__version__}")
    for finding in examine(config, cache_dir, port, asked, is_quick=quick):
        findings.append(finding)
        if not as_json:
            emit_line(f"{finding.state:<4}  {finding.name:<9} {finding.text}")
    counts: dict[str, Any] = {
        state: sum(finding.state == state for finding in findings) for state in ("ok", "warn", "fail")
    }
    if as_json:
        emit_json({"version": llm_decoder.__version__, "counts": counts, "checks": [plain(item) for item in findings]})
    else:
        emit_line(f"{counts['ok']} ok, {counts['warn']} to look at, {counts['fail']} failed")
    return 1 if counts["fail"] else 0
