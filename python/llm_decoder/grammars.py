"""Compiles the form that an answer must have, and follows it token by token (llguidance does both).

What a request asks for is compiled at the door, before it is put in line: within limits of size, work and time, on a
thread of its own, whose stack holds whatever passes the limits. A grammar that the door lets through can still become
too much work where an answer goes; then that request fails and the others go on.
"""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from llm_decoder.errors import InvalidRequestError, RequestFailedError
from llm_decoder.structured import StructuredOutputs, refuse

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from llm_decoder.tokenizer import Tokenizer

__all__ = ["Follower", "Grammar", "GrammarCompiler"]

_T = TypeVar("_T")
Masks = npt.NDArray[np.uint32]

COMPILE_S = 10.0  # a request waits for its grammar, those before it included
LOOK_AHEAD_S = 2e-3  # masks of guesses shall not cost more than guesses save
MAX_DEFINITIONS = 1000  # rules of a grammar, references of a schema: how deep they can lead into each other
MAX_CACHED = 32
MAX_CACHED_CHARS = 1 << 20
_STACK_BYTES = 256 << 20  # address space; only what is used becomes memory
# The work of compiling, and of each step: what a mask may cost those who share the step.
_LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 100_000,
    "step_lexer_fuel": 100_000,
    "step_max_items": 20_000,
    "max_items_in_row": 2000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}
# Between the parts of JSON: a space, or a new line with its indentation. A model that were let write more of it often
# writes nothing else, to the end of its tokens.
_WHITESPACE = r"(\x20|\n[\x20\t]{0,32})"


class Grammar:
    """A compiled grammar. For any thread."""

    def __init__(self, start: LLMatcher, n_words: int) -> None:
        self._start = start
        self.n_words = n_words

    def follow(self) -> Follower:
        """At the beginning of an answer."""
        return Follower(self._start.deep_copy(), self.n_words)


class Follower:
    """Where one answer is in its grammar. For one thread.

    Masks have a bit for each token, token t in bit t % 32 of word t // 32: uint32 [n_words], 1 = it may come next.
    """

    __slots__ = ("_matcher", "n_words")

    def __init__(self, matcher: LLMatcher, n_words: int) -> None:
        self._matcher = matcher
        self.n_words = n_words

    @property
    def is_complete(self) -> bool:
        """Whether nothing more may follow."""
        return self._matcher.is_stopped()

    def copy(self) -> Follower:
        """Another that goes on from here."""
        return Follower(_guarded(self._matcher.deep_copy), self.n_words)

    def fill(self, mask: Masks) -> None:
        """Writes which tokens may come next into `mask`. Raises RequestFailedError when that is too much work."""
        _guarded(self._matcher.unsafe_compute_mask_ptr, mask.ctypes.data, mask.nbytes)
        self._check()

    def advance(self, token: int) -> None:
        """`token` has come. Raises RequestFailedError when it must not, or when following it is too much work."""
        _guarded(self._matcher.consume_token, token)
        self._check()

    def forced(self) -> list[int]:
        """Tokens of a text that must come next, as the tokenizer would make them of it; [] where nothing must."""
        return _guarded(self._matcher.compute_ff_tokens)

    def look_ahead(self, tokens: Sequence[int]) -> Masks:
        """uint32 [n, n_words]: what may come behind tokens[0], behind tokens[1] and so on, as far as they may come and
        leave something to come, and as long as that is quick. It stays where it is."""
        started_s = time.perf_counter()
        ahead = _guarded(self._matcher.deep_copy)
        masks = np.empty((len(tokens), self.n_words), np.uint32)
        for n, token in enumerate(tokens):
            if _guarded(ahead.try_consume_tokens, [token]) != 1:
                return masks[:n]
            _guarded(ahead.unsafe_compute_mask_ptr, masks[n].ctypes.data, masks[n].nbytes)
            if ahead.is_stopped():  # it is complete, or has failed
                return masks[:n]
            if time.perf_counter() - started_s > LOOK_AHEAD_S:
                return masks[: n + 1]
        return masks

    def _check(self) -> None:
        if self._matcher.is_error():
            raise _lost(_reason(self._matcher))


def _guarded(call: Callable[..., _T], *arguments: Any) -> _T:
    """call(*arguments). A panic of the library, which is no Exception, would end the engine's thread."""
    try:
        return call(*arguments)
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise _lost(str(error)) from error
        raise


def _lost(reason: str) -> RequestFailedError:
    return RequestFailedError(
        f"[structured_outputs] the grammar cannot be followed any further: {reason[:240]}; make it simpler",
        param="structured_outputs",
    )


class GrammarCompiler:
    """Grammars for one tokenizer, the last ones kept. For any thread; one grammar is compiled at a time.

    vocab_size: of the model's logits. eos_token_ids: what ends an answer whose grammar may be over.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = sorted(eos_token_ids)
        self._own: LLTokenizer | None = None  # made when it is first needed
        self._cache: OrderedDict[StructuredOutputs, tuple[Grammar, int]] = OrderedDict()
        self._lock = threading.Lock()  # of the cache
        self._turn = threading.Lock()  # of who compiles

    def compile(self, asked: StructuredOutputs) -> Grammar:
        """Raises InvalidRequestError, param "structured_outputs", for what is no grammar, allows no answer, uses what
        is not supported, or takes too much work."""
        grammar = self._cached(asked)
        if grammar is None:
            grammar = self._on_own_thread(lambda: self._compile(asked))
        return grammar

    def _cached(self, asked: StructuredOutputs) -> Grammar | None:
        with self._lock:
            if asked not in self._cache:
                return None
            self._cache.move_to_end(asked)
            return self._cache[asked][0]

    def _keep(self, asked: StructuredOutputs, grammar: Grammar, n_chars: int) -> None:
        with self._lock:
            self._cache[asked] = grammar, n_chars
            while len(self._cache) > MAX_CACHED or sum(n for _, n in self._cache.values()) > MAX_CACHED_CHARS:
                self._cache.popitem(last=False)

    def _on_own_thread(self, compile_it: Callable[[], Grammar]) -> Grammar:
        """Its stack is large: the library recurses as deep as definitions lead into each other."""
        future: Future[Grammar] = Future()

        def run() -> None:
            try:
                future.set_result(compile_it())
            except InvalidRequestError as error:
                future.set_exception(error)
            except BaseException as error:  # noqa: BLE001 - whatever another's compiler makes of a bad text
                future.set_exception(refuse("need what can be compiled", f"an error: {error}"))
            finally:
                self._turn.release()

        late = refuse(f"need a grammar that is compiled within {COMPILE_S:g} s", "one that takes longer")
        until_s = time.monotonic() + COMPILE_S
        if not self._turn.acquire(timeout=COMPILE_S):
            raise late
        try:
            with _STACK_SIZE:
                before = threading.stack_size(_STACK_BYTES)
                try:
                    threading.Thread(target=run, name="llm_decoder-grammar", daemon=True).start()
                finally:
                    threading.stack_size(before)
        except BaseException:
            self._turn.release()
            raise
        try:
            return future.result(until_s - time.monotonic())
        except TimeoutError:
            raise late from None

    def _compile(self, asked: StructuredOutputs) -> Grammar:
        grammar = self._cached(asked)  # while this one waited for its turn, perhaps
        if grammar is None:
            text = _grammar_text(asked)
            grammar = _compiled(asked, text, self._ll_tokenizer())
            self._keep(asked, grammar, len(text))
        return grammar

    def _ll_tokenizer(self) -> LLTokenizer:
        if self._own is None:
            from llguidance import LLTokenizer

            n_vocab = max(self._vocab_size, self._tokenizer.n_ids)
            eos = [token for token in self._eos_token_ids if token < n_vocab]
            try:
                text = _without_marks(self._tokenizer.to_json())
                self._own = LLTokenizer(text, n_vocab=n_vocab, eos_token=eos or None)
            except ValueError as error:
                raise refuse("need a model whose tokens are bytes or fall back to them", str(error)) from error
        return self._own


def _without_marks(tokenizer: str) -> str:
    """A tokenizer.json in which added tokens that are text (<tool_call>, <think>) have names that no text holds. The
    library takes such a token for its text where only that may follow, and then refuses it as a special one; without
    the name the text is spelled by other tokens, and the token itself comes where a grammar asks for its id."""
    values = json.loads(tokenizer)
    for token in values.get("added_tokens") or ():
        if not token["special"]:
            token["content"] = f"<|\ufdd0{token['id']}|>"
    return json.dumps(values, ensure_ascii=False)


_STACK_SIZE = threading.Lock()  # guards the process's one setting of it


def _compiled(asked: StructuredOutputs, text: str, tokenizer: LLTokenizer) -> Grammar:
    from llguidance import LLMatcher, LLParserLimits

    need = f"need a {_kind(asked)} that can be compiled"
    matcher = LLMatcher(tokenizer, text, log_level=0, limits=LLParserLimits(**_LIMITS))
    mask = np.zeros((tokenizer.vocab_size + 31) // 32, np.uint32)
    if not matcher.is_error():
        # The first masks are the dearest: what is too much work, or allows no answer, mostly comes out here.
        matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        ahead = matcher.deep_copy()
        if mask.any() and ahead.consume_token(_first_token(mask)) and not ahead.is_stopped():
            ahead.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        if ahead.is_error():
            matcher = ahead
    if matcher.is_error():
        reason = _reason(matcher)
        raise refuse(need, "one that allows no answer" if reason == "NoExtensionBias" else f"an error: {reason}")
    return Grammar(matcher, len(mask))


def _first_token(mask: Masks) -> int:
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
    return int(bits.argmax())


def _grammar_text(asked: StructuredOutputs) -> str:
    """What is asked for in llguidance's own form."""
    from llguidance import LLMatcher

    if asked.schema is not None:
        n_references = asked.schema.count('"$ref"')
        if n_references > MAX_DEFINITIONS:
            raise refuse(f"json must have at most {MAX_DEFINITIONS} references", f"{n_references}")
        own_space: Any = None if '"x-guidance"' in asked.schema else {"whitespace_pattern": _WHITESPACE}
        return LLMatcher.grammar_from_json_schema(asked.schema, defaults=own_space)
    if asked.regex is not None:
        return LLMatcher.grammar_from_regex(asked.regex)
    if asked.choice is not None:
        # A terminal of its own: an automaton, not a rule with so many alternatives.
        texts = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in asked.choice)
        return LLMatcher.grammar_from_lark(f"start: CHOICE\nCHOICE: {texts}")
    assert asked.grammar is not None
    return LLMatcher.grammar_from_lark(_lark(asked.grammar))


def _lark(grammar: str) -> str:
    lines = grammar.splitlines()
    is_gbnf = any(_is_name(line.partition("::=")[0].strip()) for line in lines if "::=" in line)
    n_definitions = sum((":" in line) for line in lines)
    if n_definitions > MAX_DEFINITIONS:
        raise refuse(f"grammar must have at most {MAX_DEFINITIONS} rules", f"{n_definitions}")
    if not is_gbnf:
        return grammar
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        return str(gbnf_to_lark(grammar))
    except Exception as error:  # noqa: BLE001 - whatever another's parser makes of a bad text
        raise refuse("grammar must be GBNF, for it has rules with ::=", f"what is none: {error}") from None


def _is_name(text: str) -> bool:
    return bool(text) and all(character.isalnum() or character in "-_" for character in text)


def _reason(matcher: LLMatcher) -> str:
    """The library's words, without its traces."""
    text: str = matcher.get_error()
    for end in ("<backtrace", "<non-verbose", "<state>"):
        text = text.partition(end)[0]
    text = " ".join(text.split())
    return text if len(text) <= 240 else text[:237] + "..."


def _kind(asked: StructuredOutputs) -> str:
    if asked.schema is not None:
        return "JSON Schema"
    return "regular expression" if asked.regex is not None else "choice" if asked.choice is not None else "grammar"
