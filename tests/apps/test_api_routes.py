"""The FastAPI application as every client meets it: ids, errors, the guard at every route, health."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from asgi_client import Exchange, ask
from serving_fakes import ENDPOINTS, make_llm, make_service

from llm_decoder.api.app import create_app
from llm_decoder.errors import ModelNotFoundError
from llm_decoder.llm import LLM
from llm_decoder.serving import operations
from llm_decoder.serving.service import Service
from llm_decoder.serving.settings import ServerSettings

TABLE = (*ENDPOINTS, *operations.ENDPOINTS)


def application(service: Service) -> Any:
    return create_app(service, endpoints=TABLE)


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    made = make_service()
    yield made
    made.close(0)


@pytest.fixture(scope="module")
def app(service: Service) -> Any:
    return application(service)


def call(app: Any, method: str, target: str, **more: Any) -> Exchange:
    return asyncio.run(ask(app, method, target, **more))


def error_of(exchange: Exchange) -> dict[str, Any]:
    found: dict[str, Any] = exchange.json()["error"]
    assert set(found) == {"message", "type", "param", "code"}
    return found


def test_a_handler_is_told_the_whole_request(app: Any) -> None:
    told = call(app, "GET", "/echo/some/name?a=1&b=%C3%BC", headers={"X-Request-ID": "mine-7"}).json()
    assert told == {
        "path": "/echo/some/name",
        "query": {"a": "1", "b": "ü"},
        "named": {"name": "some/name"},
        "request_id": "mine-7",
        "n_bytes": 0,
        "client": "127.0.0.1",
    }
    assert call(app, "POST", "/echo", body=b"x" * 1000).json()["n_bytes"] == 1000


def test_an_answer_repeats_the_request_s_id_or_makes_one(app: Any) -> None:
    assert call(app, "GET", "/health", headers={"x-request-id": "abc.1"}).headers["x-request-id"] == "abc.1"
    ids = {call(app, "GET", "/health").headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3


@pytest.mark.parametrize("bad", ["a b", "x" * 129, "ü", "a;b", ""])
def test_an_id_that_could_not_stand_in_a_log_is_replaced(app: Any, bad: str) -> None:
    assert call(app, "GET", "/health", headers={"x-request-id": bad}).headers["x-request-id"].startswith("req-")


def test_every_answer_says_that_its_type_is_not_to_be_guessed(app: Any) -> None:
    for method, target in (("GET", "/health"), ("GET", "/nowhere"), ("POST", "/fail")):
        assert call(app, method, target).headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("target", ["/nowhere", "/complete/", "/health/", "/../etc/passwd", "/\0", "//"])
@pytest.mark.parametrize("method", ["POST", "DELETE", "PATCH"])
def test_a_route_that_is_none_is_a_404_in_our_words(app: Any, method: str, target: str) -> None:
    exchange = call(app, method, target)
    assert (exchange.status, error_of(exchange)["type"]) == (404, "not_found_error")


def test_another_method_is_a_405_that_names_the_right_one(app: Any) -> None:
    exchange = call(app, "GET", "/complete")
    assert (exchange.status, exchange.headers["allow"]) == (405, "POST")
    assert error_of(exchange)["message"] == "[method] /complete takes POST, got GET"


def test_a_model_without_a_name_is_no_route() -> None:
    service = make_service()
    app = create_app(service)
    assert error_of(call(app, "GET", "/v1/models/"))["message"].startswith("[path] there is no route /v1/models/")
    service.close(0)


def test_an_error_of_the_request_is_told(app: Any) -> None:
    exchange = call(app, "POST", "/fail?how=bad")
    assert exchange.status == 400
    assert error_of(exchange) == {
        "message": "[stop] need texts",
        "type": "invalid_request_error",
        "param": "stop",
        "code": "odd",
    }


def test_a_busy_server_says_when_to_try_again(app: Any) -> None:
    exchange = call(app, "POST", "/fail?how=busy")
    assert (exchange.status, exchange.headers["retry-after"]) == (429, "7")


def test_an_error_on_our_side_is_told_to_the_log_alone(app: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "llm_decoder.server"):
        exchange = call(app, "POST", "/fail", headers={"x-request-id": "r-9"})
    assert (exchange.status, error_of(exchange)["type"]) == (500, "server_error")
    for secret in (b"secret", b"/home", b"0x7f00", b"Traceback", b"RuntimeError"):
        assert secret not in exchange.body
    record = next(record for record in caplog.records if record.levelname == "ERROR")
    assert record.exc_info is not None
    assert "secret of /home" in str(record.exc_info[1])
    assert record.fields == {"request_id": "r-9"}  # type: ignore[attr-defined]


def test_fields_that_were_ignored_are_told_to_the_client_and_to_the_log(
    app: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "llm_decoder.server"):
        exchange = call(app, "POST", "/complete", json_body={"prompts": ["a"], "max_tokens": 2})
    assert exchange.headers["x-ignored-fields"] == "fancy"
    fields = caplog.records[-1].fields  # type: ignore[attr-defined]
    assert (fields["ignored_fields"], fields["n_generated_tokens"], fields["status"]) == ("fancy", 2, 200)


# -- the guard


@pytest.fixture(scope="module")
def locked() -> Iterator[Any]:
    service = make_service(api_keys=("k",), cors_origins=("https://app.example",))
    yield application(service)
    service.close(0)


def routes_behind_the_key() -> list[tuple[str, str]]:
    endpoints = [endpoint for endpoint in TABLE if endpoint.access == "key"]
    return [(endpoint.method, endpoint.path.replace("{name}", "n")) for endpoint in endpoints]


@pytest.mark.parametrize(("method", "path"), [*routes_behind_the_key(), ("GET", "/nowhere"), ("DELETE", "/open")])
def test_every_route_but_the_open_ones_needs_the_key(locked: Any, method: str, path: str) -> None:
    exchange = call(locked, method, path)
    assert (exchange.status, exchange.headers["www-authenticate"]) == (401, "Bearer")
    assert call(locked, method, path, headers={"authorization": "Bearer k"}).status != 401


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", ["/health", "/open", "/open/x/part"])
def test_open_routes_need_none(locked: Any, method: str, path: str) -> None:
    assert call(locked, method, path).status == 200


def test_what_only_looks_like_an_open_route_is_locked(locked: Any) -> None:
    for path in ("/open/x/y/part", "/open/x/part/more", "//open", "/openx", "/open/"):
        assert call(locked, "GET", path).status == 401


def test_a_route_that_a_program_adds_is_behind_the_key_too() -> None:
    service = make_service(api_keys=("k",))
    app = application(service)
    app.get("/mine")(lambda: {"mine": True})
    assert call(app, "GET", "/mine").status == 401
    assert call(app, "GET", "/mine", headers={"authorization": "Bearer k"}).json() == {"mine": True}
    service.close(0)


def test_a_foreign_host_or_page_is_refused_before_the_body_is_read(locked: Any) -> None:
    key = {"authorization": "Bearer k"}
    assert call(locked, "POST", "/echo", headers=key | {"host": "evil.example"}).status == 403
    assert call(locked, "POST", "/echo", headers=key | {"origin": "https://evil.example"}).status == 403


def test_a_listed_page_may_read_answers_and_refusals(locked: Any) -> None:
    page = {"origin": "https://app.example"}
    for headers in (page, page | {"authorization": "Bearer k"}):
        exchange = call(locked, "GET", "/version", headers=headers)
        assert exchange.headers["access-control-allow-origin"] == "https://app.example"
    asked = call(locked, "OPTIONS", "/complete", headers=page | {"access-control-request-method": "POST"})
    assert asked.status == 204
    assert asked.headers["access-control-allow-methods"] == "GET, POST, DELETE"


def test_a_query_is_bounded_text(app: Any) -> None:
    assert call(app, "GET", "/open?x=%ff").status == 400
    assert call(app, "GET", "/open?" + "a=1&" * 200).status == 400


# -- health


def test_a_server_whose_model_loads_is_there_and_says_so() -> None:
    gate = threading.Event()

    def open_llm() -> LLM:
        assert gate.wait(60)
        return make_llm()

    service = Service(open_llm)
    app = application(service)
    service.start()
    for method, path in (("GET", "/health"), ("GET", "/ready"), ("POST", "/complete")):
        exchange = call(app, method, path, json_body={"prompts": ["a"]})
        assert (exchange.status, error_of(exchange)["code"]) == (503, "loading")
        assert (error_of(exchange)["type"], exchange.headers["retry-after"]) == ("unavailable_error", "2")
    assert call(app, "GET", "/version").status == 200
    gate.set()
    assert service.wait(60)
    assert call(app, "GET", "/health").json() == {"status": "ok"}
    assert call(app, "GET", "/ready").json() == {"status": "ready", "model": "fake"}
    service.close(0)
    assert error_of(call(app, "GET", "/health"))["code"] == "closing"


def test_a_model_that_cannot_be_loaded_is_told_without_its_path() -> None:
    def open_llm() -> LLM:
        raise ModelNotFoundError("[/home/somebody/model] is not there")

    service = Service(open_llm)
    service.start()
    assert not service.wait(60)
    exchange = call(application(service), "GET", "/health")
    assert (exchange.status, error_of(exchange)["code"]) == (503, "failed")
    assert b"/home" not in exchange.body


def test_a_dead_engine_is_no_health() -> None:
    from fakes import FakeBackend

    backend = FakeBackend()
    service = make_service(backend)
    app = application(service)

    def die() -> None:
        raise SystemError("the device is gone at 0x1234")

    backend.before_step = die
    exchange = call(app, "POST", "/complete", json_body={"prompts": ["a"]})
    assert exchange.status == 503
    assert b"0x1234" not in exchange.body
    assert call(app, "GET", "/health").status == 503
    service.close(0)


def test_the_life_of_the_application_is_that_of_its_model() -> None:
    service = Service(make_llm, ServerSettings())
    app = application(service)

    async def live() -> None:
        async with app.router.lifespan_context(app):
            assert await asyncio.to_thread(service.wait, 60)
            assert (await ask(app, "GET", "/health")).status == 200
        assert service.state == "closing"

    asyncio.run(live())
