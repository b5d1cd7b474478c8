"""The Flask app by its own client: the page, its log-in, its answers, and what every route refuses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from scripted_llm import ScriptedLLM, events_of, service_of, text_of

from llm_decoder.serving.errors import HttpError
from llm_decoder.serving.service import Service
from llm_decoder.serving.settings import ServerSettings
from llm_decoder.web.app import create_app

MESSAGES = [{"role": "user", "content": "hi"}]


def client_of(script: list[str] | None = None, **settings: Any) -> tuple[FlaskClient, ScriptedLLM]:
    llm = ScriptedLLM(script)
    return create_app(service_of(llm, **settings)).test_client(), llm


@pytest.fixture
def client() -> FlaskClient:
    return client_of(["Hello ", "**world**"])[0]


def test_the_page_comes_with_a_policy_that_allows_no_foreign_or_inline_code(client: FlaskClient) -> None:
    answer = client.get("/")
    assert answer.status_code == 200
    assert answer.mimetype == "text/html"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"


def test_the_page_itself_has_nothing_inline_and_nothing_from_elsewhere(client: FlaskClient) -> None:
    html = client.get("/").get_data(as_text=True)
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|javascript:", html, re.I)
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", html, re.I)


def test_files_come_with_their_type_and_are_not_sent_twice(client: FlaskClient) -> None:
    answer = client.get("/static/code.css")
    assert answer.mimetype == "text/css"
    assert ".code-frame" in answer.get_data(as_text=True)
    again = client.get("/static/code.css", headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.data) == (304, b"")


@pytest.mark.parametrize(
    "path",
    ["../app.py", "..%2fapp.py", "%2e%2e/app.py", "none.js", "", "..", "code.css%00.js", "a/b.css", "__init__.py"],
)
def test_files_elsewhere_are_not_found(client: FlaskClient, path: str) -> None:
    answer = client.get(f"/static/{path}")
    assert answer.status_code == 404
    assert answer.json is not None
    assert answer.json["error"]["type"] == "not_found_error"


def test_what_is_nowhere_or_has_another_method_is_told_as_json(client: FlaskClient) -> None:
    answer = client.post("/nothing", json={})
    assert (answer.status_code, answer.json["error"]["type"]) == (404, "not_found_error")  # type: ignore[index]
    assert "/nothing" in answer.json["error"]["message"]  # type: ignore[index]
    answer = client.post("/", json={})
    assert (answer.status_code, answer.json["error"]["type"]) == (405, "invalid_request_error")  # type: ignore[index]
    assert "GET" in answer.headers["allow"]


def test_a_query_is_bounded_text(client: FlaskClient) -> None:
    assert client.get("/stream?prompt=%ff").status_code == 400
    assert client.get("/version?" + "a=1&" * 200).status_code == 400


def test_an_answer_is_streamed_and_can_be_read_again(client: FlaskClient) -> None:
    answer = client.post("/page/stream", json={"messages": MESSAGES, "temperature": 0.5})
    assert answer.mimetype == "text/event-stream"
    assert answer.headers["cache-control"] == "no-cache, no-transform"
    events = events_of(answer.data)
    assert text_of(events) == "Hello **world**"
    assert events[-1].data == "[DONE]"
    stream_id = events[0].data["stream"]
    rest = client.get(f"/page/stream/{stream_id}", headers={"last-event-id": str(events[1].id)})
    assert events_of(rest.data) == events[2:]


def test_without_time_to_come_back_an_answer_is_whole_and_a_hang_up_ends_it() -> None:
    client, llm = client_of(resume_s=0.0)
    answer = client.post("/page/stream", json={"messages": MESSAGES}, buffered=False)
    request = llm.next_request()
    request.say("x")
    assert not request.is_cancelled.wait(0.1)
    answer.close()
    assert request.is_cancelled.wait(10)


@pytest.mark.parametrize("last_id", ["", "x", "-1", "99999999999999999999", "１"])
def test_an_id_that_is_none_reads_from_the_beginning(client: FlaskClient, last_id: str) -> None:
    events = events_of(client.post("/page/stream", json={"messages": MESSAGES}).data)
    headers = {"last-event-id": last_id.encode().decode("latin-1")}
    assert events_of(client.get(f"/page/stream/{events[0].data['stream']}", headers=headers).data) == events


def test_an_answer_ends_when_the_page_says_stop() -> None:
    client, llm = client_of()
    answer = client.post("/page/stream", json={"messages": MESSAGES}, buffered=False)
    parts = iter(answer.response)
    stream_id = events_of(next(parts))[0].data["stream"]
    assert client.post(f"/page/stream/{stream_id}/stop", json={}).json == {"stopped": True}
    assert llm.next_request().is_cancelled.is_set()
    assert events_of(b"".join(parts))[-2].data["finish_reason"] == "abort"
    answer.close()


@pytest.mark.parametrize("path", ["/page/stream/none", "/page/stream/none/stop"])
def test_an_answer_that_nobody_knows_is_not_found(client: FlaskClient, path: str) -> None:
    answer = client.post(path, json={}) if path.endswith("stop") else client.get(path)
    assert answer.status_code == 404
    assert answer.json["error"]["code"] == "no_such_stream"  # type: ignore[index]


def test_params_and_the_wish_to_go_on_reach_the_model() -> None:
    client, llm = client_of(["x"])
    messages = [*MESSAGES, {"role": "assistant", "content": "so"}]
    client.post("/page/stream", json={"messages": messages, "top_k": 5, "seed": 1, "continue_final_message": True})
    request = llm.next_request()
    assert (request.params.top_k, request.params.seed, request.params.max_tokens) == (5, 1, None)
    assert request.options["continue_final_message"] is True
    assert list(request.messages) == messages


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": MESSAGES, "top_p": 7}, "top_p"),
        ({"messages": MESSAGES, "n": 2}, "n"),
        ({"messages": MESSAGES, "logprobs": 2}, "logprobs"),
        ({"messages": MESSAGES, "continue_final_message": "yes"}, "continue_final_message"),
        ({"messages": MESSAGES, "continue_final_message": True}, "continue_final_message"),
    ],
)
def test_a_bad_request_is_told_before_anything_is_streamed(
    body: dict[str, Any], param: str, client: FlaskClient
) -> None:
    answer = client.post("/page/stream", json=body)
    assert answer.status_code == 400
    assert answer.json["error"]["param"].split(".")[0] == param  # type: ignore[index]


@pytest.mark.parametrize("path", ["/page/stream", "/page/render", "/login"])
@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"\xff", b'{"text": "\\ud800"}', b"[" * 100_000, b'{"a":' * 100_000, b'{"text": NaN}']
)
def test_a_body_that_is_no_json_object_is_a_bad_request(client: FlaskClient, path: str, body: bytes) -> None:
    answer = client.post(path, data=body, content_type="application/json")
    assert answer.status_code == 400
    assert answer.json["error"]["type"] == "invalid_request_error"  # type: ignore[index]


def test_a_text_is_rendered_as_it_would_have_been_streamed(client: FlaskClient) -> None:
    blocks = client.post("/page/render", json={"text": "# a\nb <script>"}).json["blocks"]  # type: ignore[index]
    assert blocks == ["<h1>a</h1>\n", "<p>b &lt;script&gt;</p>\n"]


def test_a_message_too_long_to_render_is_refused(client: FlaskClient) -> None:
    assert client.post("/page/render", json={"text": "x" * 3_000_000}).status_code == 400


# -- keys


def test_without_a_key_the_page_shows_itself_and_nothing_else() -> None:
    client, _ = client_of(["x"], api_keys=("secret",))
    assert client.get("/").status_code == 200
    assert client.get("/static/code.css").status_code == 200
    assert client.get("/page/session").json == {
        "needs_key": True,
        "csrf": None,
        "state": "ready",
        "model": None,
        "max_model_len": None,
        "defaults": None,
        "has_reranker": None,
    }
    for path in ("/page/stream", "/page/render", "/page/stream/x/stop", "/logout"):
        assert client.post(path, json={"messages": MESSAGES, "text": "x"}).status_code == 401
    for path in ("/page/stream/x", "/version", "/nothing"):
        assert client.get(path).status_code == 401
    assert client.get("/health").status_code == 200


def test_a_key_opens_a_session_that_needs_its_token() -> None:
    client, _ = client_of(["x"], api_keys=("secret",))
    assert client.post("/login", json={"key": "wrong"}).status_code == 401
    assert client.post("/login", json={"key": 7}).status_code == 400
    answer = client.post("/login", json={"key": "secret"})
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert "secret" not in cookie
    session = client.get("/page/session").json
    assert session is not None
    assert session["needs_key"] is False
    assert session["model"] == "scripted"
    assert session["max_model_len"] == 100
    assert session["defaults"] == {"temperature": 0.7}
    assert session["has_reranker"] is False
    assert client.post("/page/render", json={"text": "x"}).status_code == 403
    proof = {"x-csrf-token": session["csrf"]}
    assert client.post("/page/render", json={"text": "x"}, headers=proof).status_code == 200
    assert client.post("/logout", json={}, headers=proof).status_code == 200
    assert client.post("/page/render", json={"text": "x"}, headers=proof).status_code == 401


def test_a_session_over_tls_has_a_cookie_for_tls_alone() -> None:
    client, _ = client_of(api_keys=("secret",))
    origin = {"origin": "https://localhost"}
    assert "Secure" in client.post("/login", json={"key": "secret"}, headers=origin).headers["set-cookie"]


def test_programs_come_in_with_a_key_and_no_session() -> None:
    client, _ = client_of(["x"], api_keys=("secret",))
    answer = client.post("/page/render", json={"text": "x"}, headers={"authorization": "Bearer secret"})
    assert answer.status_code == 200


# -- limits


@pytest.mark.parametrize("path", ["/", "/page/session", "/static/code.css", "/nothing"])
def test_a_foreign_name_of_this_server_is_refused_everywhere(client: FlaskClient, path: str) -> None:
    assert client.get(path, headers={"host": "evil.example"}).status_code == 403


def test_a_page_of_another_origin_may_not_call(client: FlaskClient) -> None:
    headers = {"origin": "https://evil.example"}
    assert client.post("/page/stream", json={"messages": MESSAGES}, headers=headers).status_code == 403
    assert client.post("/login", json={"key": "x"}, headers=headers).status_code == 403


def test_a_body_over_the_limit_is_refused() -> None:
    client, _ = client_of(max_body_bytes=1000)
    answer = client.post("/page/render", json={"text": "x" * 2000})
    assert (answer.status_code, answer.json["error"]["code"]) == (413, "body_too_large")  # type: ignore[index]


def test_more_requests_than_there_are_places_are_told_to_come_again() -> None:
    client, _ = client_of(max_requests=1)
    first = client.post("/page/stream", json={"messages": MESSAGES}, buffered=False)
    second = client.post("/page/render", json={"text": "x"})
    assert second.status_code == 429
    assert second.headers["retry-after"]
    assert client.get("/health").status_code == 200
    first.close()
    assert client.post("/page/render", json={"text": "x"}).status_code == 200


def test_a_stream_that_is_read_again_needs_a_place_too() -> None:
    client, llm = client_of(max_requests=1)
    first = client.post("/page/stream", json={"messages": MESSAGES}, buffered=False)
    path = f"/page/stream/{events_of(next(iter(first.response)))[0].data['stream']}"
    assert client.get(path).status_code == 429
    first.close()
    llm.next_request().end()
    assert events_of(client.get(path).data)[-1].data == "[DONE]"


def test_every_answer_has_the_name_of_its_request(client: FlaskClient) -> None:
    assert client.get("/", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    assert client.get("/nothing", headers={"x-request-id": "a b"}).headers["x-request-id"] != "a b"


def test_while_the_model_loads_the_page_is_there_and_answers_are_not() -> None:
    service = Service(lambda: ScriptedLLM(), ServerSettings())  # type: ignore[arg-type,return-value]
    client = create_app(service).test_client()
    assert client.get("/").status_code == 200
    session = client.get("/page/session").json
    assert session is not None
    assert (session["state"], session["model"], session["defaults"]) == ("loading", None, None)
    answer = client.post("/page/stream", json={"messages": MESSAGES})
    assert (answer.status_code, answer.json["error"]["type"]) == (503, "unavailable_error")  # type: ignore[index]
    assert client.get("/health").status_code == 503


def test_an_app_without_a_service_opens_what_the_environment_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LLM_DECODER_MODEL", str(tmp_path / "none"))
    monkeypatch.setenv("LLM_DECODER_API_KEY", "secret")
    client = create_app().test_client()
    assert client.get("/page/session").json["needs_key"] is True  # type: ignore[index]
    assert client.get("/ready").status_code == 401
    assert client.get("/ready", headers={"authorization": "Bearer secret"}).status_code == 503


def test_what_goes_wrong_on_our_side_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    client, llm = client_of()
    monkeypatch.setattr(llm, "submit", lambda *_, **__: 1 / 0)
    answer = client.post("/page/stream", json={"messages": MESSAGES})
    assert answer.status_code == 500
    assert "ZeroDivision" not in answer.get_data(as_text=True)
    assert HttpError(500, "x").body()["error"]["type"] == answer.json["error"]["type"]  # type: ignore[index]
