"""What HTTP servers were brought down, fooled or read out by, sent as bytes to both of ours. Every request gets a 4xx,
or the end of its connection where the protocol leaves nothing else, and the next one is served."""

from __future__ import annotations

import gzip
import json
import threading
import time

import pytest
from two_servers import MESSAGES, Running, read_answer

from llm_decoder.serving.exchange import Endpoint
from llm_decoder.serving.routes import all_endpoints
from llm_decoder.web import page

ASKED = b'{"prompt":"a","max_tokens":1}'
POST = b"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
CHUNKED = POST + b"transfer-encoding: chunked\r\n\r\n"
IN_CHUNKS = b"%x\r\n%s\r\n" % (len(ASKED), ASKED)
MIB = 1 << 20
BOMB = gzip.compress(b" " * (16 * MIB), 1)


def is_refused(server: Running, *parts: bytes) -> bool:
    """Whether a 4xx, or nothing, was the answer, and the next request is served."""
    answer = server.say(*parts)
    assert answer.status == 0 or 400 <= answer.status < 500, answer
    return server.serves_the_next()


# -- too much, too slowly


@pytest.mark.parametrize(
    "parts",
    [
        [b"GET /version HTTP/1.1\r\nhost: 127.0.0.1\r\nx: ", *[b"a" * MIB] * 32],
        [b"GET /", *[b"a" * MIB] * 32],
        [b"A" * MIB] * 32,
        [b"GET /version HTTP/1.1\r\n" + b"x: y\r\n" * 100_000],
        [b"GET /version HTTP/1.1\r\nhost: 127.0.0.1\r\n", *[b"a" * 65_536 + b": b\r\n"] * 4],
        [b"GET /version HTTP/1.1\r\nhost: a\r\ntransfer-encoding: a" + b" " * 60_000 + b"b\r\n\r\n"],
    ],
    ids=["one header", "target", "first line", "many headers", "long names", "spaces"],
)
def test_headers_without_an_end_are_refused_while_they_come(server: Running, parts: list[bytes]) -> None:
    assert is_refused(server, *parts)


def test_a_body_of_millions_of_one_byte_chunks_is_refused_before_it_is_there(server: Running) -> None:
    assert is_refused(server, CHUNKED, *[b"1\r\na\r\n" * 65_536] * 48, b"0\r\n\r\n")


@pytest.mark.parametrize(
    "parts",
    [
        [b"%x;" % len(ASKED), *[b"a" * MIB] * 6],
        [b"0" * MIB] * 6,
        [IN_CHUNKS + b"0\r\nx: ", *[b"a" * MIB] * 6],
        [IN_CHUNKS + b"0\r\n" + b"x: y\r\n" * 200_000],
    ],
    ids=["extension", "size", "trailer", "trailers"],
)
def test_framing_that_does_not_end_is_refused_while_it_comes(server: Running, parts: list[bytes]) -> None:
    answer = server.say(CHUNKED, *parts)
    assert answer.status in (0, 400, 413, 431)
    assert server.serves_the_next()


def test_a_body_over_the_limit_is_refused_declared_or_not(server: Running) -> None:
    assert server.say(POST + b"content-length: 9999999999\r\n\r\n").status == 413
    assert server.say(POST + b"content-length: %d\r\n\r\n" % (5 * MIB), *[b"a" * MIB] * 5).status == 413
    assert server.say(CHUNKED, *[b"%x\r\n%s\r\n" % (MIB, b"a" * MIB)] * 5, b"0\r\n\r\n").status == 413
    assert server.serves_the_next()


def test_a_request_that_comes_one_byte_at_a_time_is_refused_and_others_are_served_meanwhile(server: Running) -> None:
    with server.connect() as client:
        over = threading.Event()

        def drip() -> None:
            try:
                for byte in POST + b"content-length: 29\r\n\r\n" + ASKED:
                    client.sendall(bytes([byte]))
                    if over.wait(0.05):
                        return
            except OSError:
                pass

        dripping = threading.Thread(target=drip)
        dripping.start()
        assert server.serves_the_next()
        assert read_answer(client).status in (0, 408)
        over.set()
        dripping.join()
    assert server.serves_the_next()


def test_a_request_whose_every_byte_is_sent_by_itself_is_answered_when_it_is_quick(server: Running) -> None:
    parts = [bytes([byte]) for byte in POST + b"content-length: 29\r\n\r\n" + ASKED]
    assert server.say(*parts).json()["usage"]["completion_tokens"] == 1


def test_silent_connections_keep_nobody_out(server: Running) -> None:
    silent = [server.connect() for _ in range(100)]
    try:
        assert server.serves_the_next()
    finally:
        for client in silent:
            client.close()


def test_fields_of_a_url_are_counted_before_they_are_read(server: Running) -> None:
    answer = server.ask("GET", "/stream?" + "a=b&" * 10_000)
    assert (answer.status, answer.error["code"]) == (400, "bad_query")
    for query in ("prompt=%ff", "prompt=%ed%a0%80", "%ff=a"):
        assert server.ask("GET", f"/stream?{query}").status == 400


# -- where a request ends: a proxy before us must see the same


@pytest.mark.parametrize(
    "raw",
    [
        POST + b"transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n" + IN_CHUNKS + b"0\r\n\r\n",
        POST + b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n" + IN_CHUNKS + b"0\r\n\r\n",
        CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0") + IN_CHUNKS + b"0\r\n\r\n",
        CHUNKED.replace(b"chunked", b"xchunked") + IN_CHUNKS + b"0\r\n\r\n",
        CHUNKED.replace(b"chunked", b"chunked, chunked") + IN_CHUNKS + b"0\r\n\r\n",
        CHUNKED.replace(b"chunked", b"gzip, chunked") + IN_CHUNKS + b"0\r\n\r\n",
        CHUNKED.replace(b"chunked", b"chunked, identity") + IN_CHUNKS + b"0\r\n\r\n",
        CHUNKED.replace(b"chunked", b"\x0bchunked") + IN_CHUNKS + b"0\r\n\r\n",
        CHUNKED.replace(b"encoding:", b"encoding :") + IN_CHUNKS + b"0\r\n\r\n",
        CHUNKED.replace(b"\r\n\r\n", b"\r\ntransfer-encoding: identity\r\n\r\n") + IN_CHUNKS + b"0\r\n\r\n",
        POST + b"transfer-encoding: identity\r\ncontent-length: 29\r\n\r\n" + ASKED,
        POST + b"content-length: 29\r\ncontent-length: 5\r\n\r\n" + ASKED,
        POST + b"content-length: 29, 5\r\n\r\n" + ASKED,
        POST + b"content-length: +29\r\n\r\n" + ASKED,
        POST + b"content-length: -29\r\n\r\n" + ASKED,
        POST + b"content-length: 2_9\r\n\r\n" + ASKED,
        POST + b"content-length: 0x1d\r\n\r\n" + ASKED,
        POST + b"content-length : 29\r\n\r\n" + ASKED,
        POST + b"x: a\rcontent-length: 29\r\n\r\n" + ASKED,
        POST + b"x: a\0b\r\ncontent-length: 29\r\n\r\n" + ASKED,
        POST + b"x\0: a\r\ncontent-length: 29\r\n\r\n" + ASKED,
        CHUNKED + IN_CHUNKS[:-2] + b"XX0\r\n\r\n",
        CHUNKED + IN_CHUNKS + b"0\r\nthis is no trailer\r\n\r\n",
        CHUNKED + IN_CHUNKS + b"0\r\nx : y\r\n\r\n",
        CHUNKED + b"-1\r\na\r\n0\r\n\r\n",
        CHUNKED + b"+1\r\na\r\n0\r\n\r\n",
        CHUNKED + b"0x1\r\na\r\n0\r\n\r\n",
        CHUNKED + b"1_0\r\na\r\n0\r\n\r\n",
        CHUNKED + b" \r\na\r\n0\r\n\r\n",
        CHUNKED + b"g\r\na\r\n0\r\n\r\n",
        CHUNKED + b"f" * 60 + b"\r\na",
    ],
    ids=repr,
)
def test_a_request_whose_end_could_be_read_in_two_ways_is_refused_and_nothing_behind_it_is_heard(
    server: Running, raw: bytes
) -> None:
    with server.connect() as client:
        client.sendall(raw + b"GET /version HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
        answer = b""
        try:
            while data := client.recv(65_536):
                answer += data
        except ConnectionError:
            pass
    assert not answer or 400 <= int(answer.split()[1]) < 500, answer
    assert b'"version"' not in answer
    assert server.serves_the_next()


def test_trailers_change_nothing_of_a_request(server: Running) -> None:
    trailer = b"content-length: 5\r\nhost: evil.example\r\nauthorization: Bearer x\r\n"
    assert server.say(CHUNKED, IN_CHUNKS + b"0\r\n" + trailer + b"\r\n").status == 200


def test_a_name_with_an_underscore_is_no_other_header(server: Running) -> None:
    answer = server.say(
        POST + b"content_length: 3\r\nhost_: a\r\ncontent-length: 29\r\nconnection: close\r\n\r\n" + ASKED
    )
    assert answer.json()["usage"]["completion_tokens"] == 1


# -- what is no HTTP, or another one


@pytest.mark.parametrize(
    "raw",
    [
        b"\0" * 1000 + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xff" * 500 + b"\r\n\r\n",
        b"\xef\xbb\xbfGET /version HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET /version HTTP/9\r\nhost: 127.0.0.1\r\n\r\n",
        b"GET /version\r\n\r\n",
        b"GET /version HTTP/1.1\r\nconnection: close\r\n\r\n",
        b"GET /version HTTP/1.1\r\nhost: 127.0.0.1\r\nhost: localhost\r\n\r\n",
        b"GET /version HTTP/1.1\r\nhost: evil.example\r\n\r\n",
        b"GET http://evil.example/version HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
        b"GET //evil.example/version HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
        b"GET  /version HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
        b"GE(T /version HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
        b"GET /v\xe9rsion HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
        b"A" * 10_000 + b" /version HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
        b"CONNECT evil.example:443 HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b'EVAL "return 1" 0\r\n\r\n',
    ],
    ids=repr,
)
def test_what_is_no_request_of_ours_is_refused(server: Running, raw: bytes) -> None:
    assert is_refused(server, raw)


def test_a_client_of_http_1_0_is_answered_and_its_connection_ends(server: Running) -> None:
    for body in (ASKED, b'{"prompt":"a","max_tokens":1,"stream":true}'):
        with server.connect() as client:
            head = POST.replace(b"HTTP/1.1", b"HTTP/1.0") + b"content-length: %d\r\n\r\n" % len(body)
            client.sendall(head + body)
            answer = b""
            while data := client.recv(65_536):
                answer += data
        assert answer.split()[1] == b"200"
        assert b"transfer-encoding" not in answer.lower()


def test_a_client_that_asks_for_another_protocol_is_refused_or_stays_with_this_one(server: Running) -> None:
    for upgrade in ("websocket", "h2c", "TLS/1.0"):
        headers = ["connection: upgrade", f"upgrade: {upgrade}", "sec-websocket-version: 13", "http2-settings: a"]
        raw = "\r\n".join(["GET /version HTTP/1.1", "host: 127.0.0.1", *headers]) + "\r\n\r\n"
        assert server.say(raw.encode()).status in (200, 400)


def test_a_client_that_waits_to_be_told_to_go_on_is_told_so_or_refused(server: Running) -> None:
    headers = b"expect: 100-continue\r\nconnection: close\r\n"
    assert server.say(POST + headers + b"content-length: 29\r\n\r\n" + ASKED).status == 200
    assert server.say(POST + headers + b"content-length: 9999999999\r\n\r\n").status == 413


# -- paths, files, methods


@pytest.mark.parametrize(
    "target",
    [
        "/static/../page.py",
        "/static/..%2f..%2fpage.py",
        "/static/%2e%2e/page.py",
        "/static/..%5cpage.py",
        "/static//etc/passwd",
        "/static/%2fetc%2fpasswd",
        "/static/%00",
        "/static/chat.js%00.css",
        "/static/chat.js%0d%0ax:y",
        "/static/%ff%fe",
        "/static/.",
        "/static/",
        "/v1/models/..%2f..%2fetc%2fpasswd",
        "/v1/models/%00",
        "/v1/models/%ff",
        "/v1/models/a%0d%0aset-cookie:%20a=b",
        "/page/stream/..%2f..%2fa",
        "/page/stream/%00",
        "/" + "a/" * 20_000,
        "/%",
        "/%zz",
        "/v1/completions/",
        "/V1/completions",
    ],
    ids=lambda target: target[:40],
)
def test_paths_that_lead_elsewhere_are_not_found(server: Running, target: str) -> None:
    answer = server.ask("GET", target)
    assert answer.status == 404
    assert "set-cookie" not in answer.headers
    assert b"root:" not in answer.body
    assert server.serves_the_next()


def test_a_range_of_very_many_parts_is_the_whole_file_once(server: Running) -> None:
    whole = server.ask("GET", "/static/chat.js")
    for ranges in (",".join(f"{i}-" for i in range(5000)), "0-0," * 5000, "-" * 5000, "9" * 5000 + "-"):
        answer = server.ask("GET", "/static/chat.js", headers=[f"range: bytes={ranges}"])
        assert (answer.status, answer.body) == (200, whole.body)


@pytest.mark.parametrize("endpoint", [*all_endpoints(), *page.endpoints()], ids=lambda one: f"{one.method} {one.path}")
def test_no_method_on_any_route_is_an_error_of_ours(server: Running, endpoint: Endpoint) -> None:
    path = endpoint.path.replace("{", "").replace("}", "")
    secret = "secret-of-the-client"
    for method in ("HEAD", "OPTIONS", "TRACE", "PUT", "PATCH", "DELETE", "get", "PROPFIND", "GET", "POST"):
        target = path if path != "/stream" else "/stream?prompt=a&max_tokens=1"
        answer = server.ask(method, target, b"" if method == "POST" else None, [f"cookie: a={secret}"])
        assert 200 <= answer.status < 500, (method, answer)
        assert secret.encode() not in answer.body
        if method == "HEAD":
            assert answer.body == b""


# -- bodies that are not what they say


def test_forms_of_any_size_are_refused_unread(server: Running) -> None:
    part = b'--b\r\ncontent-disposition: form-data; name="a"\r\n\r\nx\r\n'
    for kind, body in (
        ("multipart/form-data; boundary=b", part * 40_000),
        ("multipart/form-data; boundary=" + "b" * 5000, part),
        ("multipart/form-data", b"\r\n" * MIB),
        ("application/x-www-form-urlencoded", b"a=b&" * 500_000),
    ):
        answer = server.ask("POST", "/v1/completions", body, [f"content-type: {kind}"])
        assert (answer.status, answer.error["param"]) == (400, "content-type")
    assert server.serves_the_next()


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, gzip", "x"])
def test_packed_bodies_are_refused_and_never_unpacked(server: Running, encoding: str) -> None:
    answer = server.post("/v1/completions", BOMB, [f"content-encoding: {encoding}"])
    assert (answer.status, answer.error["code"]) == (400, "unsupported_content_encoding")
    assert server.serves_the_next()


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"prompt":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"prompt":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001,
        b'{"prompt":"\\ud800"}',
        b'{"prompt":"a\\udc00b"}',
        b'{"prompt":"\xed\xa0\x80"}',
        b'{"\\ud800":1,"prompt":"a"}',
        b'{"prompt":"\xff\xfe"}',
        b'{"prompt":"a"}\0',
        b'\0{"prompt":"a"}',
        b'\xef\xbb\xbf\xef\xbb\xbf{"prompt":"a"}',
        '{"prompt":"a"}'.encode("utf-16"),
        '{"prompt":"a"}'.encode("utf-32"),
        b'{"prompt":"a","prompt":"b"}',
        b'{"prompt":"a","max_tokens":1' + b"0" * 400 + b"}",
        b'{"prompt":"a","max_tokens":' + b"9" * 1_000_000 + b"}",
        b'{"prompt":"a","temperature":1e309}',
        b'{"prompt":"a","temperature":NaN}',
        b'{"prompt":"a","temperature":-Infinity}',
        b'{"prompt":"a",}',
        b"{'prompt':'a'}",
        b'{"prompt":"a"} {"prompt":"b"}',
        b'{"prompt":"a"/* */}',
        b'{"prompt":"a","seed":01}',
        b'{"prompt":"a","seed":0x1}',
        b'{"prompt":"a\nb"}',
        b'"' + b"a" * 1_000_000,
        b"",
        b"null",
        b"[]",
    ],
    ids=lambda body: repr(body[:40]),
)
def test_what_is_no_json_object_is_refused_at_once_and_in_few_words(server: Running, body: bytes) -> None:
    answer = server.post("/v1/completions", body)
    assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")
    assert len(answer.body) < 1000
    assert server.serves_the_next()


def test_a_mark_of_utf8_and_a_nul_in_a_text_are_no_harm(server: Running) -> None:
    assert server.post("/v1/completions", b"\xef\xbb\xbf" + ASKED).status == 200
    assert server.post("/v1/completions", b'{"prompt":"a\\u0000b","max_tokens":1}').status == 200


def test_a_client_that_goes_away_at_any_byte_leaves_nothing_behind(server: Running) -> None:
    body = json.dumps({"messages": MESSAGES, "max_tokens": 900, "stream": True}).encode()
    raw = POST.replace(b"/v1/completions", b"/v1/chat/completions") + b"content-length: %d\r\n\r\n" % len(body) + body
    for n_bytes in (*range(0, len(raw), 17), len(raw)):
        with server.connect() as client:
            client.sendall(raw[:n_bytes])
    assert server.serves_the_next()
    end_s = time.monotonic() + 60
    while server.service.llm.stats()["n_running"] or server.service.admission.n_requests:
        assert time.monotonic() < end_s
        time.sleep(0.01)
