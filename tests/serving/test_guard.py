"""Who may come in: names of hosts, pages of other origins, keys, and sessions of the page."""

from __future__ import annotations

import pytest

from llm_decoder.serving.errors import HttpError
from llm_decoder.serving.exchange import Incoming
from llm_decoder.serving.guard import Guard
from llm_decoder.serving.settings import ServerSettings

HERE = "127.0.0.1:8000"


def request(method: str = "POST", path: str = "/v1/completions", host: str | None = HERE, **headers: str) -> Incoming:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Incoming(method, path, "r-1", named | ({} if host is None else {"host": host}))


def refusal(guard: Guard, incoming: Incoming, access: str = "key") -> HttpError | None:
    try:
        guard.check(incoming, access)  # type: ignore[arg-type]
    except HttpError as error:
        return error
    return None


def status(guard: Guard, incoming: Incoming, access: str = "key") -> int:
    error = refusal(guard, incoming, access)
    return 200 if error is None else error.status


OPEN = Guard(ServerSettings())
LOCKED = Guard(ServerSettings(api_keys=("first", "sécond")))


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "localhost.", HERE, "[::1]:8000", "10.1.2.3", None])
def test_the_server_s_own_names_and_every_address_are_let_in(host: str | None) -> None:
    assert status(OPEN, request(host=host)) == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example:8000", "127.0.0.1.evil.example", "2130706433", "127.1", "0x7f.1"]
)
def test_a_name_that_was_made_to_point_here_is_refused(host: str) -> None:
    error = refusal(OPEN, request(host=host))
    assert error is not None
    assert (error.status, error.code) == (403, "unknown_host")
    assert "--allowed-hosts" in str(error)


@pytest.mark.parametrize("host", ["", "a b", "user@localhost", "localhost:8000:1", "localhost/..", "[::1", "ö"])
def test_what_is_no_host_is_a_bad_request(host: str) -> None:
    assert status(OPEN, request(host=host)) == 400


def test_names_that_were_allowed_are_let_in() -> None:
    guard = Guard(ServerSettings(allowed_hosts=("llm.example", "*.box.example")))
    assert [status(guard, request(host=host)) for host in ("llm.example", "a.box.example:80")] == [200, 200]
    assert [status(guard, request(host=host)) for host in ("box.example", "xbox.example", "x.llm.example")] == [403] * 3
    assert status(Guard(ServerSettings(allowed_hosts=("*",))), request(host="any.example")) == 200


def test_the_host_that_it_listens_at_is_a_name_of_it() -> None:
    assert status(Guard(ServerSettings(host="llm.lan")), request(host="llm.lan:8000")) == 200


@pytest.mark.parametrize("origin", ["http://127.0.0.1:8000", "https://127.0.0.1:8000"])
def test_the_server_s_own_page_may_call(origin: str) -> None:
    assert status(OPEN, request(origin=origin)) == 200


def test_the_port_that_a_scheme_implies_may_be_left_out() -> None:
    assert status(OPEN, request(host="localhost:80", origin="http://localhost")) == 200
    assert status(OPEN, request(host="localhost", origin="https://localhost:443")) == 200


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "http://127.0.0.1:8001",
        "http://localhost.evil.com",
        "null",
        "",
        "http://",
        "127.0.0.1:8000",
    ],
)
@pytest.mark.parametrize("access", ["key", "open"])
def test_a_page_of_another_origin_may_not(origin: str, access: str) -> None:
    error = refusal(OPEN, request(origin=origin), access)
    assert error is not None
    assert (error.status, error.code) == (403, "origin")


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_an_image_of_another_page_makes_no_model_work_but_a_link_shows_our_page(site: str) -> None:
    fetched = request("GET", "/stream", sec_fetch_site=site)
    assert status(OPEN, fetched) == 403
    assert status(OPEN, fetched, "open") == 200
    assert status(OPEN, request("GET", "/stream", sec_fetch_site="same-origin")) == 200
    assert status(OPEN, request("GET", "/stream", sec_fetch_site="none")) == 200


def test_pages_that_are_listed_may_call_and_read() -> None:
    guard = Guard(ServerSettings(cors_origins=("https://App.example/",)))
    incoming = request(origin="https://app.example")
    assert status(guard, incoming) == 200
    headers = guard.cors_headers(incoming)
    assert headers["access-control-allow-origin"] == "https://app.example"
    assert "x-request-id" in headers["access-control-expose-headers"]
    assert "access-control-allow-credentials" not in headers
    assert guard.cors_headers(request(origin="https://other.example")) == {"vary": "origin"}
    assert OPEN.cors_headers(incoming) == {}
    assert status(Guard(ServerSettings(cors_origins=("*",))), request(origin="null")) == 200


def test_a_browser_that_asks_before_it_calls_is_answered() -> None:
    guard = Guard(ServerSettings(cors_origins=("https://app.example",), api_keys=("k",)))
    asking = {
        "access_control_request_method": "POST",
        "access_control_request_headers": "authorization, x-stainless-os",
    }
    reply = guard.preflight(request("OPTIONS", origin="https://app.example", **asking))
    assert reply is not None
    assert reply.status == 204
    assert reply.headers["access-control-allow-headers"] == "authorization, x-stainless-os"
    refused = guard.preflight(request("OPTIONS", origin="https://evil.example", **asking))
    assert refused is not None
    assert refused.status == 403
    assert guard.preflight(request("OPTIONS")) is None
    assert guard.preflight(request("POST", origin="https://app.example", **asking)) is None


@pytest.mark.parametrize("key", ["first", "sécond"])
@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_any_of_the_keys_opens(key: str, scheme: str) -> None:
    as_sent = key.encode().decode("latin-1")  # as servers hand headers on
    assert status(LOCKED, request(authorization=f"{scheme} {as_sent}")) == 200


@pytest.mark.parametrize(
    "authorization", ["", "Bearer", "Bearer ", "Bearer firs", "Bearer first2", "Basic first", "first", "Bearer \udcff"]
)
def test_anything_else_does_not(authorization: str) -> None:
    error = refusal(LOCKED, request(authorization=authorization))
    assert error is not None
    assert (error.status, error.headers["www-authenticate"]) == (401, "Bearer")
    assert error.body()["error"]["type"] == "authentication_error"
    assert "first" not in str(error)


def test_open_routes_need_no_key_and_a_server_without_keys_none_either() -> None:
    assert status(LOCKED, request(), "open") == 200
    assert status(OPEN, request()) == 200
    assert (OPEN.needs_key, LOCKED.needs_key) == (False, True)


def test_a_probe_may_call_by_any_name() -> None:
    assert status(LOCKED, request("GET", "/health", host="probe.example", origin="http://x"), "open") == 200
    assert status(LOCKED, request("GET", "/health/", host="probe.example"), "open") == 403


def test_all_keys_are_compared_whichever_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    from llm_decoder.serving import keys

    compared: list[bytes] = []
    compare = keys.hmac.compare_digest
    monkeypatch.setattr(keys.hmac, "compare_digest", lambda a, b: compared.append(a) or compare(a, b))
    guard = Guard(ServerSettings(api_keys=("a", "b", "c")))
    guard.check(request(authorization="Bearer a"), "key")
    assert len(set(compared)) == 3


# -- the page's sessions


def test_a_key_opens_a_session_whose_cookie_opens_the_routes() -> None:
    assert LOCKED.sessions.open("wrong") is None
    session = LOCKED.sessions.open("first")
    assert session is not None
    cookie = f"theme=dark; llm_decoder_session={session.token}"
    assert status(LOCKED, request("GET", cookie=cookie)) == 200
    assert status(LOCKED, request(cookie=cookie, x_csrf_token=session.csrf)) == 200
    assert LOCKED.sessions.find({"cookie": cookie}) == session


def test_what_changes_something_needs_the_page_s_token_beside_the_cookie() -> None:
    session = LOCKED.sessions.open("first")
    other = LOCKED.sessions.open("first")
    assert session is not None
    assert other is not None
    cookie = f"llm_decoder_session={session.token}"
    for token in ("", "x", other.csrf, session.token, "\udcff"):
        error = refusal(LOCKED, request(cookie=cookie, x_csrf_token=token))
        assert error is not None
        assert (error.status, error.code) == (403, "csrf")


def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites() -> None:
    session = LOCKED.sessions.open("first")
    assert session is not None
    cookie = LOCKED.sessions.cookie(session)
    for attribute in ("HttpOnly", "SameSite=Strict", "Path=/"):
        assert f"; {attribute}" in cookie
    assert "Secure" not in cookie
    assert LOCKED.sessions.cookie(session, secure=True).endswith("; Secure")
    assert "Max-Age=0" in LOCKED.sessions.no_cookie()


def test_a_session_ends_with_its_log_out_its_time_and_its_process() -> None:
    from llm_decoder.serving.keys import ApiKeys
    from llm_decoder.serving.sessions import Sessions

    clock = [1000.0]
    sessions = Sessions(ApiKeys(["k"]), lifetime_s=60, now_s=lambda: clock[0])
    first, second = sessions.open("k"), sessions.open("k")
    assert first is not None
    assert second is not None
    sessions.close(first)
    headers = [{"cookie": f"llm_decoder_session={session.token}"} for session in (first, second)]
    assert [sessions.find(header) is None for header in headers] == [True, False]
    assert Sessions(ApiKeys(["k"]), lifetime_s=60, now_s=lambda: clock[0]).find(headers[1]) is None
    clock[0] += 60
    assert sessions.find(headers[1]) is None
    third = sessions.open("k")
    assert third is not None
    sessions.close(third)
    assert len(sessions._closed) == 1  # those whose time is over are forgotten


@pytest.mark.parametrize("change", ["", "x", "1", ".", "..", "9" * 5000, "ä.b.c", "1.2.3", "a.b.c"])
def test_a_cookie_that_nobody_signed_opens_nothing(change: str) -> None:
    session = LOCKED.sessions.open("first")
    assert session is not None
    assert LOCKED.sessions.find({"cookie": f"llm_decoder_session={change}"}) is None
    issued, nonce, signature = session.token.split(".")
    forged = f"{int(issued) + 1}.{nonce}.{signature}"
    assert (
        LOCKED.sessions.find({"cookie": f"llm_decoder_session={forged}; llm_decoder_session={session.token}"})
        == session
    )
    assert LOCKED.sessions.find({"cookie": f"llm_decoder_session={forged}"}) is None
