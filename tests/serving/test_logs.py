"""A server's log: what a line says, and what no line may say."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from llm_decoder.outputs import RequestMetrics, RequestOutput
from llm_decoder.serving.logs import LOGGER, RequestLine, set_up
from llm_decoder.serving.settings import ServerSettings


@pytest.fixture(autouse=True)
def _loggers_as_they_were() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("llm_decoder", "uvicorn", "waitress")]
    before = [(logger, logger.handlers, logger.propagate, logger.level) for logger in loggers]
    yield
    for logger, handlers, propagate, level in before:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def output(n_prompt: int, n_generated: int, queue_s: float) -> RequestOutput:
    metrics = RequestMetrics(n_prompt_tokens=n_prompt, n_generated_tokens=n_generated, queue_s=queue_s)
    return RequestOutput(prompt="a secret", prompt_token_ids=[], outputs=[], metrics=metrics)


def test_a_line_of_json_has_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    set_up(ServerSettings(log_format="json"))
    line = RequestLine("r-1", "POST", "/v1/completions", "10.0.0.1", status=200, duration_s=0.25)
    line.note_outputs([output(3, 5, 0.1), output(4, 6, 0.2)])
    line.write()
    fields = json.loads(capsys.readouterr().err)
    assert fields["time"].endswith("Z")
    expected = {"level": "info", "message": "request", "request_id": "r-1", "status": 200, "n_prompt_tokens": 7}
    expected |= {"n_generated_tokens": 11, "queue_s": 0.2, "duration_s": 0.25, "end": "complete"}
    assert expected.items() <= fields.items()
    assert "body" not in fields
    assert "secret" not in json.dumps(fields)


def test_a_line_of_text_is_one_line_whatever_a_client_says(capsys: pytest.CaptureFixture[str]) -> None:
    set_up(ServerSettings())
    RequestLine("r-1", "GET", "/x\nerror: forged\x1b[31m", status=404, code="a b").write()
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert "\x1b" not in text
    assert 'path="/x\\nerror: forged\\u001b[31m"' in text
    assert 'code="a b"' in text


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_an_error_has_its_traceback(capsys: pytest.CaptureFixture[str], log_format: str) -> None:
    set_up(ServerSettings(log_format=log_format))
    try:
        raise RuntimeError("broken")
    except RuntimeError:
        LOGGER.error("request failed", exc_info=True, extra={"fields": {"request_id": "r-1"}})
    text = capsys.readouterr().err
    assert "RuntimeError: broken" in text
    assert "r-1" in text
    assert log_format == "text" or json.loads(text)["traceback"].startswith("Traceback")


@pytest.mark.parametrize(
    ("path", "status", "is_told"), [("/health", 200, False), ("/health", 503, True), ("/x", 200, True)]
)
def test_a_probe_that_finds_all_well_is_no_news(
    capsys: pytest.CaptureFixture[str], path: str, status: int, is_told: bool
) -> None:
    set_up(ServerSettings())
    RequestLine("r-1", "GET", path, status=status).write()
    assert bool(capsys.readouterr().err) == is_told


def test_servers_of_others_write_to_the_same_log(capsys: pytest.CaptureFixture[str]) -> None:
    set_up(ServerSettings(log_format="json"))
    logging.getLogger("uvicorn.error").warning("from %s", "uvicorn")
    assert json.loads(capsys.readouterr().err)["message"] == "from uvicorn"
