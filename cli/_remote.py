"""A server of the OpenAI API in place of a model that is loaded here: the verbs of LLM that the command line uses."""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import json
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Self, cast
from urllib.parse import urlsplit

import httpx

from llm_decoder.cli._output import note, plain
from llm_decoder.cli._remote_answers import GatheredAnswers, is_chat
from llm_decoder.cli._remote_search import GatheredSearch, RemoteSearch
from llm_decoder.cli._sse_reader import DONE, EventReader
from llm_decoder.errors import InvalidRequestError, ServerError
from llm_decoder.outputs import RequestOutput, StreamEvent
from llm_decoder.sampling import SamplingParams
from llm_decoder.search.params import SearchParams

if TYPE_CHECKING:
    from llm_decoder.prompts import Prompt

__all__ = ["RemoteLLM", "checked_url"]

_CONNECT_S = 10.0
# Of silence: some servers say nothing at all while they read a long prompt.
_SILENCE_S = 600.0
# How long a full or loading server is waited for, whatever it asks for.
_PATIENCE_S = 900.0
_SHORTEST_WAIT_S = 0.5
_CHAT = "/v1/chat/completions"
_SEARCH = "/stream_chat_beam"
_SHOWN_CHARS = 500


def checked_url(url: str) -> str:
    """Without a slash, and without the /v1 that clients of OpenAI write, at its end. Raises ValueError."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or parts.username:
        raise ValueError(f"need a URL such as http://127.0.0.1:8000, got {url!r:.200}")
    _ = parts.port  # raises ValueError where it is none
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


class RemoteLLM:
    """What `generate`, `search` and `chat` need of LLM. Opening it waits for a model that is still being loaded.

    url: as checked_url gives it. key: the server's API key. model: the name that it calls the model, None = its first.
    tell: shows a line to the person who waits. Raises ServerError.
    """

    def __init__(
        self, url: str, key: str | None = None, model: str | None = None, *, tell: Callable[[str], None] = note
    ) -> None:
        headers = {"user-agent": "llm-decoder"} | ({} if key is None else {"authorization": f"Bearer {key}"})
        self.url = url
        self._tell = tell
        self._http = httpx.Client(
            base_url=url,
            headers=headers,
            timeout=httpx.Timeout(_SILENCE_S, connect=_CONNECT_S),
            trust_env=not _is_this_machine(url),  # a proxy is no way to it
        )
        try:
            self.name = model or self._first_model()
        except BaseException:
            self.close()
            raise

    def _first_model(self) -> str | None:
        """None where the server does not list its models."""
        try:
            with self._open("GET", "/v1/models") as response:
                models = response.json()["data"]
            return str(models[0]["id"]) if models else None
        except (ValueError, TypeError, KeyError, _NoRouteError):
            return None

    def stream(self, prompt: Prompt, params: SamplingParams) -> Generator[StreamEvent, None, None]:
        """As LLM.stream; closing the iterator ends the answer. A chat that the server finds too long loses its oldest
        turns. The last event has the output and nothing else.

        Raises InvalidRequestError, ServerError.
        """
        if not is_chat(prompt):
            yield from self._events("/v1/completions", {"prompt": prompt}, prompt, params, 0)
            return
        messages = list(cast("Sequence[dict[str, Any]]", prompt))
        n_dropped = 0
        while True:
            body = {"messages": messages}
            try:
                yield from self._events(_CHAT, body, prompt, params, n_dropped)
                return
            except InvalidRequestError as error:
                shorter = _without_oldest_turn(messages)
                if error.code not in _TOO_LONG or shorter is None:
                    raise
                n_dropped += len(messages) - len(shorter)
                messages = shorter

    def generate(self, prompt: str, params: SamplingParams) -> list[RequestOutput]:
        """As LLM.generate, for one prompt."""
        if params.prompt_logprobs is not None:  # no server streams these
            return [self._whole(prompt, params)]
        *_, last = self.stream(prompt, params)
        assert last.output is not None, "a stream ends with an event that has the output"
        return [last.output]

    def stream_search(self, prompt: Prompt, params: SearchParams) -> RemoteSearch:
        """As LLM.stream_search, of a server of this project; closing the iterator ends the search.

        Raises InvalidRequestError, ServerError.
        """
        gathered = GatheredSearch(prompt, params)
        return RemoteSearch(gathered, self._search_events(gathered, prompt, params))

    def _search_events(
        self, gathered: GatheredSearch, prompt: Prompt, params: SearchParams
    ) -> Generator[StreamEvent, None, None]:
        body = {"messages" if is_chat(prompt) else "prompt": prompt, "return_tree": "summary"}
        is_over = False
        try:
            with self._ask(_SEARCH, body, params) as response:
                gathered.request_id = response.headers.get("x-request-id", "")
                for name, data in _chunks(response):
                    try:
                        events = list(gathered.add(name, data))
                    except (ValueError, TypeError, KeyError, AttributeError):
                        raise _not_understood(self.url) from None
                    yield from events
                    is_over = any(event.output is not None for event in events)
        except _NoRouteError:
            raise ServerError(
                f"[--url] {self.url} has no {_SEARCH}: searches need a server of this project, llm-decoder serve"
            ) from None
        if not is_over:
            raise _not_understood(self.url)

    def _events(
        self, path: str, body: dict[str, Any], prompt: Prompt, params: SamplingParams, n_dropped: int
    ) -> Iterator[StreamEvent]:
        answer = GatheredAnswers(prompt, params, n_dropped)
        body = body | {"stream": True, "stream_options": {"include_usage": True}}
        with self._ask(path, body, params) as response:
            for _, chunk in _chunks(response):
                try:
                    events = list(answer.add(chunk))
                except (ValueError, TypeError, KeyError, AttributeError):
                    raise _not_understood(self.url) from None
                yield from events
        yield StreamEvent(0, "", [], output=answer.output(), dropped_messages=n_dropped)

    def _whole(self, prompt: str, params: SamplingParams) -> RequestOutput:
        answer = GatheredAnswers(prompt, params)
        with self._ask("/v1/completions", {"prompt": prompt}, params) as response:
            try:
                list(answer.add(response.json()))
            except (ValueError, TypeError, KeyError, AttributeError):
                raise _not_understood(self.url) from None
        return answer.output()

    @contextlib.contextmanager
    def _ask(self, path: str, body: dict[str, Any], params: SamplingParams) -> Iterator[httpx.Response]:
        asked = fields_of(params, is_chat=path == _CHAT)
        model = {} if self.name is None else {"model": self.name}
        extras = {"return_token_ids": True}
        if params.logprobs is not None:
            extras["return_tokens_as_token_ids"] = True
        with self._open("POST", path, model | body | asked | extras) as response:
            ignored = [name.strip() for name in response.headers.get("x-ignored-fields", "").split(",")]
            for name in ignored:
                if name in asked:
                    raise InvalidRequestError(f"[{name}] the server does not know it; leave it out", param=name)
            yield response

    @contextlib.contextmanager
    def _open(self, method: str, path: str, body: dict[str, Any] | None = None) -> Iterator[httpx.Response]:
        """An answer with status 200, whose body is read or streamed. Raises ServerError, InvalidRequestError."""
        ends_s = time.monotonic() + _PATIENCE_S
        told = ""
        while True:
            try:
                # Of a GET the whole body; a POST's is read as it comes, or whole by whoever wants JSON.
                with self._http.stream(method, path, json=body) as response:
                    if response.status_code == 200:
                        if not response.headers.get("content-type", "").startswith("text/event-stream"):
                            response.read()
                        yield response
                        return
                    response.read()
                    refusal = _refusal(response, self.url, path)
            except httpx.ConnectError as error:
                raise ServerError(
                    f"[--url] nothing answers at {self.url} ({_clean(str(error))}); start a server with llm-decoder "
                    "serve, or give another --url"
                ) from None
            except httpx.TimeoutException:
                raise ServerError(f"[--url] {self.url} has been silent for too long; is it the right one?") from None
            except httpx.HTTPError as error:
                raise ServerError(f"[--url] {self.url} broke off: {_clean(str(error))}; try again") from None
            wait_s = _retry_after_s(response)
            if wait_s is None or time.monotonic() + wait_s > ends_s:
                raise refusal
            if told != str(refusal):
                told = str(refusal)
                self._tell(f"{told} Waiting; Ctrl-C stops.")
            time.sleep(max(wait_s, _SHORTEST_WAIT_S))

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _NoRouteError(ServerError):
    """404 that is not the API's word on a model."""


_TOO_LONG = ("context_length_exceeded", "exceed_context_size_error")


def fields_of(params: SamplingParams, *, is_chat: bool) -> dict[str, Any]:
    """The fields of a request that `params` differ in from what they are when left out. The API spells log
    probabilities in a chat in its own way."""
    # What a field of a search is when it is left out depends on the method.
    method: dict[str, Any] = {}
    if isinstance(params, SearchParams) and params.method != SearchParams.method:
        method = {"method": params.method}
    nothing = type(params)(max_tokens=None, **method)
    given = {
        name: plain(getattr(params, name))
        for name in (field.name for field in dataclasses.fields(params))
        if getattr(params, name) != getattr(nothing, name)
    } | method
    if is_chat and "logprobs" in given:
        given |= {"logprobs": True, "top_logprobs": given["logprobs"]}
    return given


def _chunks(response: httpx.Response) -> Iterator[tuple[str, dict[str, Any]]]:
    """The events of a stream up to [DONE], each with its name. Raises ServerError for one that breaks off, or says that
    it failed."""
    reader = EventReader()
    where = str(response.url.copy_with(path="/")).rstrip("/")
    try:
        for piece in response.iter_bytes():
            for name, data in reader.push_named(piece):
                if data == DONE:
                    return
                chunk = json.loads(data)
                if chunk.get("error"):
                    raise ServerError(f"[{where}] {_message(chunk['error'])}")
                yield name, chunk
    except (ValueError, AttributeError):
        raise _not_understood(where) from None
    raise ServerError(f"[{where}] broke the answer off; try again")


def _not_understood(where: str) -> ServerError:
    return ServerError(f"[{where}] need answers as the OpenAI API has them, got another; is this the right --url?")


def _without_oldest_turn(messages: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """None when there is only one: a user's message and what follows it. System messages at the beginning stay."""
    n_system = next((i for i, m in enumerate(messages) if m["role"] not in ("system", "developer")), len(messages))
    turns = [i for i in range(n_system + 1, len(messages)) if messages[i]["role"] == "user"]
    return None if not turns else messages[:n_system] + messages[turns[0] :]


def _refusal(response: httpx.Response, url: str, path: str) -> Exception:
    """What a status other than 200 says, as an error of ours."""
    status = response.status_code
    try:
        error = response.json()["error"]
        said = _message(error)
        param, code = error.get("param"), error.get("code")
        code = code if isinstance(code, str) else error.get("type")
    except (ValueError, TypeError, KeyError, AttributeError):
        said, param, code = "", None, None
    if status in (401, 403):
        remedy = "give its key as --api-key or LLM_DECODER_API_KEY"
        return ServerError(f"[--api-key] {url} does not let us in: {said or status}; {remedy}")
    if status == 404 and (not said or code == "no_such_route"):
        return _NoRouteError(f"[--url] {url} has no {path}: is it a server of the OpenAI API?")
    if status == 404:
        return ServerError(f"[--model] {url}: {said}")
    if status in (400, 413, 422):
        return InvalidRequestError(said or f"[{url}] refused the request: {status}", param=param, code=code)
    return ServerError(f"[{url}] {said or f'status {status}'}")


def _message(error: Any) -> str:
    return _clean(str(error.get("message") or error if isinstance(error, dict) else error))


def _clean(text: str) -> str:
    """Words of another, fit for a terminal."""
    return "".join(c if c.isprintable() else " " for c in text[:_SHOWN_CHARS])


def _retry_after_s(response: httpx.Response) -> float | None:
    """Seconds, or a date (RFC 9110, section 10.2.3), of a server that is full or not ready; None = do not come back."""
    value = response.headers.get("retry-after")
    if response.status_code not in (429, 503) or value is None:
        return None
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _is_this_machine(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
