"""Who may call, from where, and what one learns of another: both servers with keys, over real sockets."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from two_servers import MESSAGES, Api, Running, Web

from llm_decoder.serving.exchange import Endpoint
from llm_decoder.serving.routes import all_endpoints
from llm_decoder.web import page

KEYS = ("first-key", "sécond-key")
ENDPOINTS = (*all_endpoints(), *page.endpoints())
LOCKED = [endpoint for endpoint in ENDPOINTS if endpoint.access == "key"]
OPEN = [endpoint for endpoint in ENDPOINTS if endpoint.access == "open"]
BEARER = [f"authorization: Bearer {KEYS[0]}"]


@pytest.fixture(scope="module", params=[Api, Web], ids=["uvicorn", "waitress"])
def locked(request: pytest.FixtureRequest) -> Iterator[Running]:
    running: Running = request.param(api_keys=KEYS, salt_by_key=True, read_timeout_s=5.0)
    yield running
    running.end()


def path_of(endpoint: Endpoint) -> str:
    return endpoint.path.replace("{", "").replace("}", "")


# -- keys


@pytest.mark.parametrize("endpoint", LOCKED, ids=lambda one: f"{one.method} {one.path}")
def test_no_route_answers_without_its_key_whatever_the_body(locked: Running, endpoint: Endpoint) -> None:
    for body in (b"", b"{}", b"[" * 1000):
        answer = locked.ask(endpoint.method, path_of(endpoint), body)
        assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "authorization",
    [
        *("", "Bearer", "Bearer ", "Bearer  ", "Bearer null", "Bearer first-ke", "Bearer first-key2", "first-key"),
        *("Basic first-key", "Bearer FIRST-KEY", "Bearer first-key,first-key", "Bearer first-key second", "Bearer *"),
        *("Bearer first-key\x01", "Bearer \xff\xfe", "Bearer " + "a" * 30_000, "Token first-key", "Bearer %66irst-key"),
    ],
    ids=lambda text: repr(text)[:30],
)
def test_nothing_but_a_whole_key_opens(locked: Running, authorization: str) -> None:
    answer = locked.ask("GET", "/v1/models", headers=[f"authorization: {authorization}"])
    assert answer.status in (400, 401)
    for other in ("api-key: first-key", "x-api-key: first-key", "cookie: llm_decoder_session=first-key"):
        assert locked.ask("GET", "/v1/models", headers=[other]).status == 401
    assert locked.ask("GET", "/v1/models?api_key=first-key&key=first-key").status == 401
    assert locked.ask("GET", "/v1/models", headers=BEARER).status == 200


@pytest.mark.parametrize(
    "path",
    ["/V1/models", "//v1/models", "/v1//models", "/v1/models/", "/./v1/models", "/health/../v1/models",
     "/static/../v1/models", "/health;/v1/models", "/health%2f..%2fv1%2fmodels", "/static/..%2fv1%2fmodels",
     "/%76%31/models", "/v1/models%00", "/health/", "/static/%2e%2e/metrics", "/metrics%20", "/openapi.json/",
     "/nowhere"],
)  # fmt: skip
def test_no_way_to_write_a_path_goes_round_the_key(locked: Running, path: str) -> None:
    answer = locked.ask("GET", path)
    assert answer.status in (400, 401, 404)
    assert b"scripted" not in answer.body


def test_a_key_that_is_wrong_is_in_no_answer_and_no_log(locked: Running, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        answer = locked.ask("GET", "/v1/models", headers=["authorization: Bearer somebodys-other-key"])
        assert locked.ask("GET", "/v1/models", headers=BEARER).status == 200
    shown = answer.body.decode() + "".join(str(vars(record)) for record in caplog.records)
    assert "somebodys-other-key" not in shown
    assert KEYS[0] not in shown


# -- names and pages of others


@pytest.mark.parametrize("endpoint", [one for one in ENDPOINTS if one.path != "/health"], ids=lambda one: one.path)
def test_a_name_that_was_made_to_point_here_reaches_no_route(locked: Running, endpoint: Endpoint) -> None:
    for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "evil.example:80"):
        raw = f"{endpoint.method} {path_of(endpoint)} HTTP/1.1\r\nhost: {host}\r\n{BEARER[0]}\r\n\r\n"
        answer = locked.say(raw.encode())
        assert (answer.status, answer.error["code"]) == (403, "unknown_host")


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "http://localhost.evil.com", "http://evil.com/localhost", "null", "file://",
     "http://localhost:1", "http://127.0.0.1", "chrome-extension://abc", "http://127.0.0.1@evil.example", "http://127.0.0.1.evil.example",
     "", "*"],
)  # fmt: skip
def test_pages_of_another_origin_reach_no_route_with_or_without_a_key(locked: Running, origin: str) -> None:
    for endpoint in ENDPOINTS:
        if endpoint.path != "/health":
            headers = [f"origin: {origin}", *BEARER]
            answer = locked.ask(endpoint.method, path_of(endpoint), b"{}", headers)
            assert (answer.status, answer.error["code"]) == (403, "origin"), endpoint
            assert "access-control-allow-origin" not in answer.headers
    preflight = [
        f"origin: {origin}",
        "access-control-request-method: POST",
        "access-control-request-headers: authorization",
    ]
    assert locked.ask("OPTIONS", "/v1/chat/completions", headers=preflight).status == 403


def test_a_form_of_another_page_starts_nothing(locked: Running) -> None:
    """Without JSON's content type a browser asks nobody before it sends."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=b"):
        answer = locked.ask(
            "POST",
            "/v1/completions",
            b'{"prompt":"a"}',
            [*BEARER, f"content-type: {kind}", "sec-fetch-site: same-origin"],
        )
        assert answer.status == 400
    assert (
        locked.ask("GET", "/stream?prompt=a&max_tokens=1", headers=[*BEARER, "sec-fetch-site: cross-site"]).status
        == 403
    )


# -- what one learns of another


def test_a_prompt_of_another_key_is_not_found_in_the_cache(locked: Running) -> None:
    def n_cached(key: str, **more: str) -> int:
        body = {"prompt": "Once upon a time there was a child. " * 12, "max_tokens": 1, **more}
        answer = locked.post("/v1/completions", body, [f"authorization: Bearer {key}"])
        assert answer.status == 200
        found: int = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
        return found

    one, other = KEYS
    assert n_cached(one) == 0
    assert n_cached(one) > 0
    assert n_cached(other.encode().decode("latin-1")) == 0
    assert n_cached(one, cache_salt="mine") == 0
    assert n_cached(one, cache_salt=other) == 0


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "/etc/passwd", "..\\..\\a", "a\0b", "file:///etc/passwd", "http://169.254.169.254/",
     "~/.ssh/id_rsa", "sha256:" + "0" * 64, "sha256-../../a", "scripted/../scripted", "scripted\0", "C:\\a", "${HOME}",
     "{{ 7 * 7 }}", "a" * 1000],
    ids=lambda name: name[:30],
)  # fmt: skip
def test_a_models_name_leads_to_no_file_and_tells_of_none(locked: Running, name: str) -> None:
    for path, body in (("/v1/completions", {"prompt": "a"}), ("/v1/chat/completions", {"messages": MESSAGES})):
        answer = locked.post(path, body | {"model": name}, BEARER)
        assert (answer.status, answer.error["code"]) == (404, "model_not_found")
        assert b"root:" not in answer.body
        assert b"49" not in answer.body


def test_words_of_a_request_are_in_no_log(locked: Running, caplog: pytest.LogCaptureFixture) -> None:
    canary = "canary-of-a-user"
    with caplog.at_level(logging.DEBUG):
        for path, body in (
            ("/v1/completions", {"prompt": canary, "max_tokens": 1}),
            ("/v1/completions", {"prompt": [canary, 5]}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": canary}], "max_tokens": 1}),
            ("/v1/chat/completions", {"messages": [{"role": canary, "content": canary}]}),
            ("/generate", {"prompt": canary, "guided_regex": f"({canary}"}),
        ):
            locked.post(path, body, BEARER)
        locked.ask("GET", f"/stream?prompt={canary}&max_tokens=1", headers=BEARER)
        locked.ask("GET", f"/stream?prompt={canary}&max_tokens=x", headers=BEARER)
    assert [record for record in caplog.records if canary in str(vars(record))] == []


def test_what_breaks_inside_is_told_to_the_log_alone(locked: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def submit(*arguments: object, **named: Endpoint) -> None:
        raise RuntimeError("secret of /home/somebody at 0x7f00, PosixPath('/root')")

    monkeypatch.setattr(type(locked.service.llm), "submit", submit)
    for path in ("/v1/completions", "/generate"):
        answer = locked.post(path, {"prompt": "a"}, BEARER)
        assert (answer.status, answer.error["type"]) == (500, "server_error")
        for word in (b"secret", b"home", b"0x7f", b"Posix", b"Traceback", b"RuntimeError"):
            assert word not in answer.body
