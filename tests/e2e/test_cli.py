"""The program as a user meets it: processes, pipes, signals and a terminal, on the embedded model."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import resource
import select
import shlex
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PATIENCE_S = 120
# What is sent to a terminal when a line can be typed: bracketed paste on.
PROMPT = "\x1b[?2004h"
LONG = ("--max-tokens", "900", "--ignore-eos")


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A user without settings of his own; quantised weights are kept for the whole session."""
    home = tmp_path_factory.mktemp("home")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("LLM_DECODER_", "XDG_", "HF_"))}
    for name in ("NO_COLOR", "PYTHONUNBUFFERED"):
        clean.pop(name, None)
    return clean | {
        "HOME": str(home),
        "LLM_DECODER_CACHE_DIR": str(home / "weights"),
        "HF_HUB_OFFLINE": "1",
        "TERM": "xterm",
        "PROMPT_TOOLKIT_NO_CPR": "1",  # the terminal of these tests answers no questions
    }


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "llm_decoder", *arguments]


def run(
    environment: dict[str, str], *arguments: str, stdin: str = "", cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """The program on these arguments, its output caught."""
    return subprocess.run(
        command(*arguments),
        env=environment,
        input=stdin,
        cwd=cwd,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=PATIENCE_S,
    )


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


# -- the original command lines


@pytest.mark.parametrize(
    ("line", "stdin"),
    [
        (["cli/generate_cli.py", "--prompt", "Hello"], ""),
        (["cli/chat_cli.py"], "Tell me a story about a dog.\n"),
        (["cli/generate_batch.py"], ""),
        (["cli/cli_app.py", "stream"], ""),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_original_command_lines_run_from_the_checkout_as_they_stand(
    environment: dict[str, str], line: list[str], stdin: str
) -> None:
    done = subprocess.run(
        [sys.executable, *line],
        cwd=ROOT,
        env=environment,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.strip()) > 20
    assert "Traceback" not in done.stderr


def test_chat_without_any_input_leaves_in_peace(environment: dict[str, str]) -> None:
    done = run(environment, "chat")
    assert (done.returncode, done.stdout) == (0, "")
    assert "demo" in done.stderr


# -- text


def test_the_same_seed_gives_the_same_text_and_greedy_needs_none(environment: dict[str, str]) -> None:
    for flags in (("--seed", "7"), ("--temperature", "0")):
        first, second = (run(environment, "generate", "Once", "--max-tokens", "24", *flags) for _ in range(2))
        assert first.stdout == second.stdout
        assert first.stdout.strip()


def test_bfloat16_weights_are_packed_once_and_the_embedded_model_s_text_is_that_of_float32(
    environment: dict[str, str],
) -> None:
    flags = ("generate", "Once upon a time", "--max-tokens", "24", "--temperature", "0")
    reference = run(environment, *flags, "--dtype", "float32")
    found = run(environment, *flags, "--dtype", "bfloat16", "--kv-cache-dtype", "float32")
    assert found.stdout == reference.stdout
    assert found.stdout.strip()
    again = run(environment | {"LLM_DECODER_DTYPE": "bfloat16", "LLM_DECODER_KV_CACHE_DTYPE": "float32"}, *flags)
    assert again.stdout == reference.stdout
    assert "bf16" in run(environment, "cache", "ls").stdout


def test_results_go_to_standard_output_the_rest_to_standard_error_and_no_colour_to_a_pipe(
    environment: dict[str, str],
) -> None:
    done = run(environment, "generate", "-", "--max-tokens", "8", "--echo", stdin="Once upon a time\n")
    assert done.returncode == 0
    assert done.stdout.startswith("Once upon a time")
    assert "tokens/s" in done.stderr
    assert "tokens/s" not in done.stdout
    assert "\x1b" not in done.stdout + done.stderr


def test_streamed_text_is_the_text_of_json(environment: dict[str, str]) -> None:
    flags = ("Once upon a time", "--max-tokens", "24", "--temperature", "0")
    streamed = run(environment, "generate", *flags).stdout
    output = json.loads(run(environment, "generate", *flags, "--json").stdout)
    events = records(run(environment, "stream", *flags, "--json").stdout)
    assert streamed == output["outputs"][0]["text"] + "\n"
    assert "".join(event["text"] for event in events) == output["outputs"][0]["text"]
    assert output["metrics"]["n_generated_tokens"] == len(output["outputs"][0]["token_ids"])


def test_logprobs_are_in_the_json(environment: dict[str, str]) -> None:
    done = run(environment, "generate", "Once", "--max-tokens", "3", "--logprobs", "2", "--ignore-eos", "--json")
    entries = json.loads(done.stdout)["outputs"][0]["logprobs"]
    assert len(entries) == 3
    assert all(len(entry["top"]) == 2 and entry["logprob"] <= 0 for entry in entries)


# -- how it ends


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("generate", "Hello", "--max-tokens", "2"), 0),
        (("generate", "Hello", "--model", "/no/such/model"), 1),
        (("generate", "Hello", "--model", "no-such-owner/no-such-model"), 1),
        (("generate", "Hello", "--device", "cuda"), 1),
        (("generate", "Hello", "--kv-cache-bytes", "1"), 1),
        (("generate", ""), 1),
        (("generate", "Hello", "--temperature", "-1"), 2),
        (("generate",), 2),
        (("frobnicate",), 2),
    ],
)
def test_exit_codes_and_one_clear_line(environment: dict[str, str], arguments: tuple[str, ...], code: int) -> None:
    done = run(environment, *arguments)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    if code == 1:
        assert done.stdout.strip() == ""
        assert done.stderr.startswith("error: [")
        assert done.stderr.count("\n") == 1


def test_a_kernel_set_that_is_not_there_is_named(environment: dict[str, str]) -> None:
    done = run(environment, "generate", "Hello", "--isa", "sse9")
    assert done.returncode == 2
    assert "sse9" in done.stderr
    done = run(environment | {"LLM_DECODER_CPU_ISA": "sse9"}, "devices")
    assert done.returncode == 1
    assert "sse9" in done.stderr


def test_standard_output_that_takes_nothing_is_named(environment: dict[str, str]) -> None:
    with open("/dev/full", "w") as full:
        arguments = command("generate", "Hello", "--max-tokens", "4")
        done = subprocess.run(arguments, env=environment, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: [stdout] No space left on device\n"


def test_an_output_file_that_takes_no_more_is_named(environment: dict[str, str], prompts: Path, tmp_path: Path) -> None:
    run(environment, "generate", "Hello", "--max-tokens", "1")  # its quantised weights would hit the limit, too
    target = tmp_path / "out.jsonl"
    done = subprocess.run(
        command("batch", str(prompts), "-o", str(target)),
        env=environment,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)),
    )
    assert done.returncode == 1
    assert f"error: [{target}] File too large" in done.stderr


def test_a_reader_that_goes_away_is_met_with_silence(environment: dict[str, str]) -> None:
    arguments = command("stream", *LONG)
    with subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1)
        process.stdout.close()
        errors = process.stderr.read().decode()
        assert process.wait(PATIENCE_S) == 0
    assert errors == ""


def test_ctrl_c_ends_a_stream_with_130_and_no_traceback(environment: dict[str, str]) -> None:
    arguments = command("stream", *LONG)
    with subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        errors = process.stderr.read().decode()
        assert process.wait(PATIENCE_S) == 130
    assert "Traceback" not in errors
    assert "tokens/s" not in errors


# -- batch


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    names = ("Anna", "Ben", "Lily", "Max", "Mia", "Tom")
    lines = [
        {"id": n, "prompt": f"{names[n % 6]} had {n} red balls.", "max_tokens": 12 + n, "ignore_eos": True}
        for n in range(30)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def wait_for_lines(path: Path, n_lines: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if path.exists() and path.read_bytes().count(b"\n") >= n_lines:
            return
        time.sleep(0.01)
    raise AssertionError(f"{path} has not got {n_lines} lines in {PATIENCE_S} s")


def test_a_batch_that_is_killed_goes_on_without_losing_or_doubling_a_line(
    environment: dict[str, str], prompts: Path, tmp_path: Path
) -> None:
    whole, target = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    assert run(environment, "batch", str(prompts), "-o", str(whole)).returncode == 0

    arguments = command("batch", str(prompts), "-o", str(target), "--concurrency", "4")
    for n_lines in (2, 9):
        with subprocess.Popen(arguments, env=environment, stderr=subprocess.DEVNULL) as process:
            wait_for_lines(target, n_lines)
            process.kill()
        assert process.returncode == -signal.SIGKILL
    with target.open("ab") as file:
        file.write(b'{"index": 3, "inp')  # as a kill in the middle of a write leaves it
    assert run(environment, "batch", str(prompts), "-o", str(target)).returncode == 0

    by_index = [{record["index"]: record for record in records(path.read_text("utf-8"))} for path in (whole, target)]
    assert len(records(target.read_text("utf-8"))) == 30
    assert by_index[0] == by_index[1]
    assert {index: record["id"] for index, record in by_index[1].items()} == {n: n for n in range(30)}


def test_a_bad_line_fails_alone_and_the_exit_code_says_so(environment: dict[str, str], tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    too_long = {"prompt": "word " * 5000}
    lines = [
        '{"prompt": "A", "max_tokens": 2}',
        "{",
        json.dumps(too_long),
        '{"prompt": "\\ud800"}',
        '{"token_ids": [99999999]}',
    ]
    source.write_text("\n".join([*lines, '{"prompt": "B", "max_tokens": 2}']), encoding="utf-8")
    done = run(environment, "batch", str(source))
    found = {record["index"]: record for record in records(done.stdout)}
    assert done.returncode == 1
    assert sorted(index for index, record in found.items() if "error" in record) == [1, 2, 3, 4]
    assert found[2]["error"]["code"] == "context_length_exceeded"
    assert found[0]["usage"]["completion_tokens"] <= 2


# -- a terminal


class Terminal:
    """The program on a terminal of its own."""

    def __init__(self, environment: dict[str, str], *arguments: str) -> None:
        self._master, slave = pty.openpty()

        def take_terminal() -> None:
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            command(*arguments),
            env=environment,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=take_terminal,
        )
        os.close(slave)
        self.seen = ""

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def wait_for(self, text: str) -> str:
        """What was shown since the last wait, up to `text`."""
        deadline = time.monotonic() + PATIENCE_S
        while text not in self.seen:
            if not select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise AssertionError(f"waited {PATIENCE_S} s for {text!r}, saw {self.seen!r}")
            try:
                data = os.read(self._master, 4096)
            except OSError:  # the other side is closed
                data = b""
            if not data:
                raise AssertionError(f"the program ended before {text!r}, saw {self.seen!r}")
            self.seen += data.decode("utf-8", "replace")
        before, _, self.seen = self.seen.partition(text)
        return before + text

    def wait(self) -> int:
        """The exit code; what is still shown is read, so that nobody waits for room."""
        deadline = time.monotonic() + PATIENCE_S
        while self.process.poll() is None and time.monotonic() < deadline:
            if select.select([self._master], [], [], 0.05)[0]:
                try:
                    self.seen += os.read(self._master, 4096).decode("utf-8", "replace")
                except OSError:
                    break
        return self.process.wait(PATIENCE_S)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


@pytest.fixture
def chat(environment: dict[str, str]) -> Iterator[Terminal]:
    terminal = Terminal(environment, "chat", *LONG)
    yield terminal
    terminal.close()


def test_chat_on_a_terminal_says_what_the_embedded_model_is_and_leaves_at_exit(chat: Terminal) -> None:
    chat.wait_for("demo")
    chat.wait_for(PROMPT)
    chat.type("/exit\r")
    assert chat.wait() == 0


def test_the_first_ctrl_c_stops_the_answer_and_the_second_leaves(chat: Terminal) -> None:
    chat.wait_for(PROMPT)
    chat.type("Tell me a story about a dog.\r")
    chat.wait_for("dog.")  # the line as typed
    chat.wait_for(" the ")  # an answer is under way
    chat.type("\x03")
    chat.wait_for("stopped")
    chat.wait_for(PROMPT)
    chat.type("\x03")
    assert chat.wait() == 130
    assert "Traceback" not in chat.seen


def test_chat_remembers_what_was_typed_in_a_private_file(environment: dict[str, str]) -> None:
    terminal = Terminal(environment, "chat", "--max-tokens", "2")
    terminal.wait_for(PROMPT)
    terminal.type("Remember this.\r")
    terminal.wait_for("tokens/s")
    terminal.wait_for(PROMPT)
    terminal.type("\x04")
    assert terminal.wait() == 0
    terminal.close()
    history = Path(environment["HOME"]) / ".local/state/llm-decoder/chat_history"
    assert "Remember this." in history.read_text("utf-8")
    assert history.stat().st_mode & 0o077 == 0


# -- the other verbs


def test_devices_name_the_cpu_its_kernels_and_a_gpu_or_why_there_is_none(environment: dict[str, str]) -> None:
    found = {device["name"]: device for device in json.loads(run(environment, "devices", "--json").stdout)["devices"]}
    cpu = found["cpu"]
    assert cpu["isa"] == cpu["isas"][0]
    assert "generic" in cpu["isas"]
    assert cpu["threads"] >= 1
    assert found["cuda"]["is_usable"] == (not found["cuda"]["reason"])
    plain = run(environment | {"LLM_DECODER_CPU_ISA": "generic"}, "devices").stdout
    assert "kernels  generic" in plain
    assert found["cuda"]["reason"] in plain


def test_show_tells_sizes_and_needs_without_loading_weights(environment: dict[str, str]) -> None:
    facts = json.loads(run(environment, "show", "--json").stdout)
    assert facts["model"] == "storyteller"
    assert facts["matrices"] == "bfloat16"
    assert facts["config"]["family"] == "llama"
    assert facts["config"]["context"] >= 1024
    memory = facts["memory"]
    sizes = [memory[f"weights_as_{name}_bytes"] for name in ("int4", "int8", "bfloat16", "float32")]
    assert 0 < sizes[0] < sizes[1] < sizes[2] < sizes[3]
    assert memory["needed_with_one_full_context_as_int8_bytes"] > memory["weights_as_int8_bytes"]
    plain = run(environment, "show").stdout
    assert "family: llama" in plain
    assert "MiB" in plain


def test_show_of_a_hub_model_that_was_never_fetched_says_how_to_fetch_it(environment: dict[str, str]) -> None:
    done = run(environment, "show", "owner/never-fetched")
    assert done.returncode == 1
    assert "--model owner/never-fetched fetches it" in done.stderr


# -- a weights directory


@pytest.fixture(scope="module")
def converted(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model as a weights directory, config/ inside."""
    place = tmp_path_factory.mktemp("converted")
    done = run(environment, "convert", "storyteller", "weights", cwd=place)
    assert done.returncode == 0, done.stderr
    return place / "weights"


GREEDY = ("generate", "Once upon a time", "--max-tokens", "8", "--temperature", "0")


def test_a_config_beside_the_weights_is_found_from_everywhere(
    environment: dict[str, str], converted: Path, tmp_path: Path
) -> None:
    shutil.copytree(converted, tmp_path / "weights")
    shutil.move(tmp_path / "weights" / "config", tmp_path / "config")
    text = run(environment, *GREEDY).stdout
    assert run(environment, *GREEDY, "--model", "weights", cwd=tmp_path).stdout == text
    assert run(environment, *GREEDY, "--model", str(tmp_path / "weights")).stdout == text
    assert run(environment, *GREEDY, "--model", ".", cwd=tmp_path / "weights").stdout == text
    assert "family: llama" in run(environment, "show", "weights", cwd=tmp_path).stdout

    (tmp_path / "config" / "paths.json").write_text('{"weights": "weights"}', encoding="utf-8")
    done = run(environment, *GREEDY, "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["outputs"][0]["text"] + "\n" == text

    shutil.move(tmp_path / "config", tmp_path / "settings")
    assert run(environment, *GREEDY, "--config", "settings", cwd=tmp_path).stdout == text
    assert "family: llama" in run(environment, "show", "weights", "--config", "settings", cwd=tmp_path).stdout
    assert run(environment, *GREEDY, "--model", "weights", cwd=tmp_path).returncode == 1


def test_a_directory_in_int4_alone_answers_as_int4_of_the_model_does(
    environment: dict[str, str], tmp_path: Path
) -> None:
    done = run(environment, "convert", "storyteller", "weights", "--int4", "--no-int8", "--no-float", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "matrices: int4" in run(environment, "show", "weights", cwd=tmp_path).stdout
    text = run(environment, *GREEDY, "--quantization", "int4").stdout
    assert run(environment, *GREEDY, "--model", "weights", "--quantization", "int4", cwd=tmp_path).stdout == text


def test_inside_a_weights_directory_the_embedded_model_runs_as_elsewhere(
    environment: dict[str, str], converted: Path, tmp_path: Path
) -> None:
    shutil.copytree(converted, tmp_path / "weights")
    chat = tmp_path / "weights" / "config" / "chat_template.json"
    chat.write_text(json.dumps(json.loads(chat.read_text("utf-8")) | {"template": "{{ 1 / 0 }}"}), encoding="utf-8")
    for arguments in (GREEDY, ("chat", "--max-tokens", "4"), ("show",), ("list",)):
        done = run(environment, *arguments, stdin="Hello\n", cwd=tmp_path / "weights")
        assert done.returncode == 0, done.stderr


def test_list_has_the_embedded_model_hub_models_and_a_weights_directory_here(
    environment: dict[str, str], tmp_path: Path
) -> None:
    import llm_decoder

    embedded = Path(llm_decoder.__file__).parent / "embedded" / "storyteller"
    hub = tmp_path / "hub"
    snapshot = hub / "models--owner--small" / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_bytes((embedded / "config.json").read_bytes())
    other = hub / "models--owner--other" / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    other.mkdir(parents=True)
    (other / "config.json").write_text('{"model_type": "unheard-of"}', encoding="utf-8")
    assert run(environment, "convert", str(embedded), "weights", cwd=tmp_path).returncode == 0

    hub_environment = environment | {"HF_HUB_CACHE": str(hub)}
    found = json.loads(run(hub_environment, "list", "--json", cwd=tmp_path).stdout)["models"]
    assert [model["name"] for model in found] == ["storyteller", "./weights", "owner/other", "owner/small"]
    assert [model["family"] for model in found] == ["llama", "llama", "", "llama"]
    assert "unheard-of" in found[2]["reason"]
    assert "owner/small" in run(hub_environment, "list", cwd=tmp_path).stdout


def test_a_converted_model_gives_the_same_text(environment: dict[str, str], tmp_path: Path) -> None:
    import llm_decoder

    embedded = Path(llm_decoder.__file__).parent / "embedded" / "storyteller"
    done = run(environment, "convert", str(embedded), str(tmp_path / "weights"))
    assert done.returncode == 0, done.stderr
    flags = ("generate", "Once upon a time", "--temperature", "0", "--max-tokens", "16")
    assert run(environment, *flags, "--model", str(tmp_path / "weights")).stdout == run(environment, *flags).stdout


def test_convert_onto_something_else_is_refused(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    done = run(environment, "convert", "/no/such/model", str(tmp_path / "weights"))
    assert done.returncode == 1
    assert done.stderr.startswith("error: [")
    assert not (tmp_path / "weights").exists()


def test_the_cache_lists_what_was_quantised_and_is_cleared(environment: dict[str, str], tmp_path: Path) -> None:
    own = environment | {"LLM_DECODER_CACHE_DIR": str(tmp_path / "cache")}
    run(own, "generate", "Hello", "--max-tokens", "1")
    before = json.loads(run(own, "cache", "ls", "--json").stdout)
    assert len(before["entries"]) == 1
    assert before["n_bytes"] > 0
    assert "storyteller" in run(own, "cache", "ls").stdout
    assert json.loads(run(own, "cache", "clear", "--json").stdout)["freed_bytes"] == before["n_bytes"]
    assert json.loads(run(own, "cache", "ls", "--json").stdout)["entries"] == []


def test_bench_measures_the_embedded_model_against_this_machine(environment: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    flags = ("--prompt-len", "24", "--gen-len", "3", "--batch", "2", "--repeat", "2")
    done = run(environment, "bench", *flags, "--output", str(file))
    report = json.loads(file.read_text())
    assert report["model"] == "storyteller"
    assert report["engine"]["device"] == "cpu"
    assert all(speed > 0 for speed in report["limits"].values())
    assert [column["name"] for column in report["columns"]] == ["prefill24", "decode24", "batch2@24"]
    for column in report["columns"]:
        assert len(column["runs"]) == 2
        assert column["tokens_per_s"] == min(column["runs"])
        assert sum(part["time_share"] for part in column["parts"].values()) == pytest.approx(1.0)
        assert sum(part["seconds"] for part in column["parts"].values()) == pytest.approx(column["seconds"])
        assert all(column["parts"][name]["limit_share"] > 0 for name in ("attn_qkv", "attention", "lm_head"))
    assert [column["n_steps"] for column in report["columns"]] == [1, 3, 3]
    assert "WHERE TIME GOES" in done.stdout
    assert "batch2@24" in done.stdout


@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512vnni"])
def test_bench_runs_on_every_isa(environment: dict[str, str], isa: str) -> None:
    if isa not in json.loads(run(environment, "devices", "--json").stdout)["devices"][0]["isas"]:
        pytest.skip(f"this machine has no {isa}")
    flags = ("--columns", "prefill16,decode16", "--gen-len", "1", "--repeat", "1", "--threads", "1", "--json")
    report = json.loads(run(environment | {"LLM_DECODER_CPU_ISA": isa}, "bench", *flags).stdout)
    assert (report["engine"]["isa"], report["engine"]["threads"]) == (isa, 1)
    assert all(column["share"] > 0 for column in report["columns"])


def test_a_foreign_checkpoint_runs_by_its_path(environment: dict[str, str], tmp_path: Path) -> None:
    from models_factory import make_checkpoint

    folder = make_checkpoint(tmp_path / "qwen", "qwen3")
    done = run(environment, "generate", "Hello", "--model", str(tmp_path / "qwen"), "--max-tokens", "4", "--json")
    assert done.returncode == 0, (folder, done.stderr)
    assert json.loads(done.stdout)["metrics"]["n_generated_tokens"] > 0


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_closed_output_stream_is_no_crash(environment: dict[str, str], closed: str) -> None:
    line = f"{shlex.join(command('generate', 'Once', '--max-tokens', '3'))} {1 if closed == 'stdout' else 2}>&-"
    ran = subprocess.run(["sh", "-c", line], env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
    assert ran.returncode == 0
    assert "Traceback" not in ran.stderr
    assert bool(ran.stdout) == (closed == "stderr")


@pytest.mark.parametrize("arguments", [("--help",), ("list",), ("generate", "Once", "--max-tokens", "3")])
def test_output_that_cannot_be_written_is_an_error_of_one_line(
    environment: dict[str, str], arguments: tuple[str, ...]
) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        ran = subprocess.run(
            command(*arguments), env=environment, stdout=full, stderr=subprocess.PIPE, text=True, timeout=PATIENCE_S
        )
    assert ran.returncode == 1
    assert "No space left on device" in ran.stderr
    assert "Traceback" not in ran.stderr
