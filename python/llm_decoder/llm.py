"""LLM: load a model, give it prompts, get text."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
import numpy.typing as npt

from llm_decoder.answers import AnswerParser, ChatStyle, find_style
from llm_decoder.backends import BackendOptions, StepTimes, create_backend
from llm_decoder.chat import Message, last_user_text
from llm_decoder.chat_answers import ChatAnswers, StreamParts
from llm_decoder.companions import Companions
from llm_decoder.detokenizer import TextDecoder
from llm_decoder.engine import Engine, EngineOptions, RequestHandle
from llm_decoder.errors import ConfigError, InvalidRequestError
from llm_decoder.grammars import Grammar, GrammarCompiler
from llm_decoder.no_tokenizer import NoTokenizer
from llm_decoder.outputs import RequestOutput, StreamEvent
from llm_decoder.prompts import Prompt, as_prompts, checked_messages, is_chat, tokenize_prompt
from llm_decoder.sampling import BUILT_IN_DEFAULTS, SamplingParams, checked_params, resolve_params
from llm_decoder.search.likelihood import likelihoods
from llm_decoder.search.params import SearchParams, checked_search
from llm_decoder.search.scorers import RequestScorer, Reranker
from llm_decoder.sequence import Rows, Sink
from llm_decoder.speculation import SpeculationOptions
from llm_decoder.structured import as_structured_outputs

if TYPE_CHECKING:
    from llm_decoder.encoders.sentence_encoder import SentenceEncoder
    from llm_decoder.model_config import ModelConfig
    from llm_decoder.tokenizer import Tokenizer

__all__ = ["LLM", "TextStream"]

Params = SamplingParams | Sequence[SamplingParams] | None
SCORE_PARAMS = SamplingParams(max_tokens=0, prompt_logprobs=0)


class LLM:
    """A model, ready to answer; safe to use from several threads, whose requests are computed together.

    A model folder without a tokenizer is for token ids: its answers have ids and the text "", and what is asked for in
    text (prompts, chats, stop strings, bad words) is an InvalidRequestError that says which files are missing.

    model: a Hugging Face folder, a `weights/` folder, or a hub id; None = the small story model in the package.
    device: "cpu", "cuda" (the first GPU), "cuda:1" and so on, or "auto": LLM_DECODER_DEVICE, else the first GPU that
    can be used and that the model fits, else the CPU. quantization: "none", "int8", "int4", on a GPU "fp8", or "auto":
    on the CPU int8, or none when dtype is named; on a GPU none. dtype: of matrices that are not quantised, and on a GPU
    of the rows between them too: "float32", the reference precision, on the CPU, "float16" on a GPU, "bfloat16", or
    "auto", the checkpoint's own (on the CPU bfloat16 when all are stored so, else float32; on a GPU float16 when all
    are, else bfloat16). kv_cache_dtype: on the CPU "float32", "bfloat16", "int8", or "auto" (that of float matrices,
    int8 with quantised ones); on a GPU "fp8", "int8", or "auto" (dtype).
    kv_cache_bytes: size of the KV pool; None = on the CPU four sequences of full length, or 32768 tokens if that is
    more, at most a quarter of the free memory; on a GPU what is left of its memory but 1 GiB, at most 1024 sequences
    of full length.
    kv_tier_bytes: host memory for pages that give way on a GPU and come back when they are needed again; 0 = none,
    None = twice the pool, at most a quarter of the free host memory and 16 GiB. The CPU, whose pages are in host memory
    already, has none.
    max_model_len: tokens of prompt and answer; None = the model's own, or what the pool holds if that is less.
    page_size: tokens a page, a multiple of 16. threads: of what the CPU computes; None = LLM_DECODER_THREADS, else one
    a physical core that this process may use. seed: requests without a seed of their own draw from it, in the order
    they come; None = differently each time. isa: the CPU's kernels by name (devices()), "auto" = the best.
    max_num_seqs: sequences computed together. speculation: "prompt-lookup" (tokens that followed the same words before
    are computed ahead: faster where a text repeats itself or its prompt, the same answers), or "none".
    speculative_tokens: how many ahead. max_tokens_per_step: tokens a step computes, long prompts are cut to it; None =
    512 on the CPU, 4096 on a GPU.
    max_requests: open requests before QueueFullError; None = no limit. sampling_defaults: values of SamplingParams'
    fields for what a request leaves open, before the model's own generation_config.json. generation_config: "auto"
    (that file's sampling is followed), or "none" (only its end tokens are). cache_dir: where packed weights are kept.
    tokenizer: another folder to take it from. chat_template, system: a template's text and a system message in place of
    the model's own. config_dir: a settings folder that describes a `weights/` folder without a config of its own.
    deterministic: answers never depend on what else is computed; the CPU keeps that in every precision, asked or not, a
    GPU is slower then.
    reranker: what scores answers for scorer="reranker": the folder of a cross-encoder, a CrossEncoder, or an object
    with its `score`; None = the one in the package, opened when it is first asked for. embedder: the folder of a
    sentence encoder, or a SentenceEncoder, for `embed`; None = the model's own hidden states.
    progress: called as progress(n_done_bytes, n_all_bytes, what) while a model is fetched, quantised, and copied to a
    GPU.

    Raises ModelLoadError, ConfigError, BackendError (errors.py). Also a context manager: leaving it closes it.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        device: str = "auto",
        quantization: str = "auto",
        dtype: str = "auto",
        kv_cache_dtype: str = "auto",
        kv_cache_bytes: int | None = None,
        kv_tier_bytes: int | None = None,
        max_model_len: int | None = None,
        page_size: int | None = None,
        threads: int | None = None,
        seed: int | None = 0,
        isa: str = "auto",
        max_num_seqs: int = 64,
        speculation: str = "prompt-lookup",
        speculative_tokens: int = 15,
        max_tokens_per_step: int | None = None,
        max_requests: int | None = None,
        sampling_defaults: Mapping[str, Any] | None = None,
        generation_config: str = "auto",
        cache_dir: str | Path | None = None,
        tokenizer: str | Path | None = None,
        chat_template: str | None = None,
        system: str | None = None,
        config_dir: str | Path | None = None,
        deterministic: bool = False,
        reranker: Reranker | str | Path | None = None,
        embedder: SentenceEncoder | str | Path | None = None,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> None:
        from llm_decoder.loading import load_model

        options = BackendOptions(
            device=device,
            threads=threads,
            kv_cache_dtype=kv_cache_dtype,
            kv_cache_bytes=kv_cache_bytes,
            kv_tier_bytes=kv_tier_bytes,
            page_size=page_size,
            max_model_len=max_model_len,
            max_tokens_per_step=max_tokens_per_step,
            max_num_seqs=max_num_seqs,
            isa=isa,
            deterministic=deterministic,
        )
        # Everything that can be refused without the model is, before minutes of loading.
        if generation_config not in ("auto", "none"):
            raise ConfigError(f"[generation_config] need auto or none, got {generation_config!r:.50}")
        engine_options = EngineOptions(
            max_num_seqs=max_num_seqs,
            speculation=SpeculationOptions(speculation, speculative_tokens),
            max_requests=max_requests,
            seed=seed,
            sampling_defaults=(_checked_defaults(sampling_defaults),),
        )
        companions = Companions(reranker, embedder, threads=threads, isa=isa)
        loaded = load_model(
            model,
            quantization=quantization,
            dtype=dtype,
            options=options,
            cache_dir=cache_dir,
            tokenizer=tokenizer,
            chat_template=chat_template,
            system=system,
            config_dir=config_dir,
            progress=progress,
        )
        engine = Engine(
            lambda: create_backend(loaded, options, progress),
            loaded.tokenizer,
            replace(
                engine_options,
                eos_token_ids=loaded.eos_token_ids,
                sampling_defaults=(
                    *engine_options.sampling_defaults,
                    loaded.generation_defaults if generation_config == "auto" else {},
                ),
            ),
        )
        self._set_up(engine, loaded.tokenizer, loaded.name, loaded.config, loaded.stop, companions)

    def _set_up(
        self,
        engine: Engine,
        tokenizer: Tokenizer | NoTokenizer,
        name: str,
        config: ModelConfig | None,
        chat_stop: tuple[str, ...],
        companions: Companions,
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._name = name
        self._config = config
        self._chat_stop = chat_stop
        self._companions = companions
        self._grammars: GrammarCompiler | None = None
        if not isinstance(tokenizer, NoTokenizer):
            self._grammars = GrammarCompiler(tokenizer, engine.limits.vocab_size, engine.options.eos_token_ids)

    @classmethod
    def over(
        cls,
        engine: Engine,
        tokenizer: Tokenizer | NoTokenizer,
        name: str,
        config: ModelConfig | None = None,
        chat_stop: tuple[str, ...] = (),
        reranker: Reranker | str | Path | None = None,
        embedder: SentenceEncoder | str | Path | None = None,
    ) -> Self:
        """An LLM over an engine that is already there. chat_stop: texts that end an answer in a chat. reranker,
        embedder: as in LLM()."""
        llm = cls.__new__(cls)
        llm._set_up(engine, tokenizer, name, config, chat_stop, Companions(reranker, embedder))
        return llm

    @property
    def name(self) -> str:
        """What the model is called."""
        return self._name

    @property
    def config(self) -> ModelConfig | None:
        """The model as numbers; None for an engine that runs none."""
        return self._config

    @property
    def tokenizer(self) -> Tokenizer:
        """What makes ids of text and text of ids. Raises ModelNotFoundError when the model came without one."""
        if isinstance(self._tokenizer, NoTokenizer):
            raise self._tokenizer.missing()
        return self._tokenizer

    @property
    def max_model_len(self) -> int:
        """Tokens that prompt and answer may have together."""
        return self._engine.limits.max_model_len

    @property
    def vocab_size(self) -> int:
        """Columns of the logits; may exceed len(tokenizer). Ids past the tokenizer's are legal and give no text."""
        return self._engine.limits.vocab_size

    @property
    def max_num_seqs(self) -> int:
        """Sequences that are computed together: no search has more beams."""
        return self._engine.limits.max_num_seqs

    @property
    def sampling_defaults(self) -> dict[str, Any]:
        """What a request gets for the sampling fields that it leaves open."""
        resolved = resolve_params(SamplingParams(), *self._engine.options.sampling_defaults)
        return {name: getattr(resolved, name) for name in BUILT_IN_DEFAULTS}

    @property
    def has_reranker(self) -> bool:
        """Whether there is one, opened or not."""
        return self._companions.has_reranker()

    @property
    def reranker(self) -> Reranker:
        """What scores answers for scorer="reranker". Raises InvalidRequestError where the LLM was made without one and
        the package has none."""
        return self._companions.reranker()

    @property
    def reranker_name(self) -> str | None:
        """What the reranker is called, its folder's name; None where there is none. Opens nothing."""
        return self._companions.reranker_name

    @property
    def is_reranker_embedded(self) -> bool:
        """Whether it is the package's own, because the LLM was made with no other."""
        return self._companions.is_reranker_embedded

    @property
    def embedder_name(self) -> str | None:
        """What the embedder is called, its folder's name; None where there is none."""
        return self._companions.embedder_name

    @property
    def embedder(self) -> SentenceEncoder | None:
        """What makes vectors of texts; None = the model itself."""
        return self._companions.embedder

    @property
    def is_closed(self) -> bool:
        """Whether it takes no more requests: it was closed, or its engine has died."""
        return self._engine.is_closed

    @functools.cached_property
    def chat_style(self) -> ChatStyle:
        """How the model's answers in a chat are written, by its chat template: the marks of reasoning, the form of
        calls of tools."""
        return find_style(getattr(self._tokenizer, "chat_template", None))

    def answer_parser(self, messages: Sequence[Message] = (), **template_options: Any) -> AnswerParser:
        """What takes an answer to a chat with these options apart, as its text comes; for those who follow `submit`
        themselves. `chat` and `stream_chat` have it done. messages: looked at when the last of them is continued.

        Raises InvalidRequestError for tools that are none, or that the model cannot be given.
        """
        return self.chat_answers(messages, **template_options).parser()

    def chat_answers(self, messages: Sequence[Message] = (), **template_options: Any) -> ChatAnswers:
        """What a chat's options say of its answers; see answer_parser."""
        return ChatAnswers(self._tokenizer, self.chat_style, messages, template_options)

    # -- text

    def generate(
        self,
        prompts: str | Sequence[Any],
        params: Params = None,
        *,
        priority: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[RequestOutput]:
        """The answers to one prompt or to several, in their order; always a list.

        prompts: a text, a list of token ids, or a list of these. params: for all, or one for each. priority: see
        submit. progress(n_done, n_all). Raises InvalidRequestError or ContextLengthExceededError before anything is
        computed, RequestFailedError when one request fails; then, and on Ctrl-C, the other requests of this call are
        cancelled.
        """
        all_prompts = as_prompts(prompts)
        return self._results(all_prompts, params_for(all_prompts, params), priority, progress)

    def _results(
        self,
        all_prompts: Sequence[Prompt],
        all_params: Sequence[SamplingParams],
        priority: int,
        progress: Callable[[int, int], None] | None,
    ) -> list[RequestOutput]:
        handles: list[RequestHandle] = []
        outputs: list[RequestOutput] = []
        try:
            for prompt, own_params in zip(all_prompts, all_params, strict=True):
                handles.append(self.submit(prompt, own_params, priority=priority))
            for handle in handles:
                outputs.append(handle.result())
                if progress is not None:
                    progress(len(outputs), len(handles))
        except BaseException:
            for handle in handles[len(outputs) :]:
                handle.cancel()
            raise
        return outputs

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, *, priority: int = 0, **template_options: Any
    ) -> TextStream:
        """The answer as it comes. prompt: a text, a list of token ids, or the messages of a chat.

        The texts of the events, joined, are the text that `generate` gives; the last event has finish_reason and
        `output`. Events of a chat have `parts` as well. Closing the iterator, or dropping it, cancels the request.
        """
        handle = self.submit(prompt, params, stream=True, priority=priority, **template_options)
        return TextStream(handle, self.parts_of(prompt, template_options))

    def search(
        self,
        prompts: str | Sequence[Any],
        params: SearchParams | None = None,
        *,
        priority: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[RequestOutput]:
        """The best answers to one prompt or to several, in their order; always a list.

        Each output has the n best of the `width` answers that were followed, the best first, with their beam_score,
        and where a scorer was asked with their rerank_score and final_score; of beams and steps also the `tree` of
        what was looked at. RequestFailedError, which names the scorer, when that raises or gives something else than a
        finite number for each answer. The rest and errors: as for `generate`.
        """
        params = checked_search(params)
        all_prompts = as_prompts(prompts)
        return self._results(all_prompts, [params] * len(all_prompts), priority, progress)

    def stream_search(
        self, prompt: Prompt, params: SearchParams | None = None, *, priority: int = 0, **template_options: Any
    ) -> TextStream:
        """A search as it goes: an event a token, or of method "steps" a step, whose `text` is what all answers have in
        common that may still be the best, so that it is never taken back, and whose `search` tells what became of the
        others; of samples nothing is told before all are whole. Then, where a scorer is asked, an event with `rerank`.
        The last events have the rest of the best answer, the other answers whole, and `output`.
        """
        return self.stream(prompt, checked_search(params), priority=priority, **template_options)

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        priority: int = 0,
        **template_options: Any,
    ) -> RequestOutput:
        """The answer to a chat: [{"role": "user", "content": "..."}, ...], through the model's own template.

        When the chat has outgrown the context its oldest turns are dropped (the rule is chat.py's), and the output's
        dropped_messages says how many messages that were. params: None = to the end of the context. priority: see
        submit. template_options: continue_final_message; tools, tool_choice and parallel_tool_calls in the form of
        OpenAI's API; and what the template takes, such as enable_thinking. Each answer has a `message`: its content,
        reasoning and calls of tools.
        """
        output = self.submit(checked_messages(messages), params, priority=priority, **template_options).result()
        return self.chat_answers(messages, **template_options).with_messages(output)

    def stream_chat(
        self, messages: Sequence[Message], params: SamplingParams | None = None, **template_options: Any
    ) -> TextStream:
        """As `chat`, the answer as it comes."""
        return self.stream(checked_messages(messages), params, **template_options)

    # -- numbers

    def logits(self, token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """float32 [n_tokens, vocab_size]: row i scores what comes after token i."""
        return self._rows(token_ids, "logits")

    def score(self, text: str | Sequence[int]) -> npt.NDArray[np.float32]:
        """float32 [n_tokens - 1]: the log probability of each token but the first, given those before it."""
        output = self.submit(text, SCORE_PARAMS).result()
        entries = output.prompt_logprobs or []
        return np.array([entry.logprob for entry in entries if entry is not None], np.float32)

    def embed(self, texts: str | Sequence[Any]) -> npt.NDArray[np.float32]:
        """float32 [n_texts, hidden_size]: the vectors of the embedder; without one the mean over the tokens of the
        model's hidden states after the final norm. An embedder takes no token ids. Raises InvalidRequestError."""
        if self.embedder is not None:
            return self.embedder.embed(texts)
        handles = [self.submit(text, SCORE_PARAMS, rows="hidden") for text in as_prompts(texts)]
        return np.stack([handle.rows().mean(axis=0, dtype=np.float64).astype(np.float32) for handle in handles])

    def stats(self) -> dict[str, Any]:
        """What is running, waiting and held, and counts since the start (EngineCore.stats)."""
        return {"model": self.name} | self._engine.stats()

    def pages(self, first: int = 0, n: int = 1024) -> dict[str, Any]:
        """What is known of the KV cache's pages that are not free (EngineCore.pages): n of them, from number `first`
        on."""
        return self._engine.pages(first, n)

    def start_profile(self) -> None:
        """From here on every step notes where its time goes, which costs it one to three percent."""
        self._engine.call(lambda backend: backend.start_profile())

    def stop_profile(self) -> StepTimes:
        """Ends that: seconds of each step since, part by part. Raises ValueError without start_profile."""
        return self._engine.call(lambda backend: backend.stop_profile())

    # -- lower

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        stream: bool = False,
        rows: Rows | None = None,
        sink: Sink | None = None,
        drop_turns: bool = True,
        priority: int = 0,
        **template_options: Any,
    ) -> RequestHandle:
        """Puts a request in line and returns at once; see Engine.submit. Everything else here is made of this.

        params: None = SamplingParams(), in a chat with max_tokens=None. drop_turns: a chat that has outgrown the
        context loses its oldest turns; false = it is refused. priority: -100 to 100, lower is sooner: it waits for
        its turn as if it had come so many seconds later, or earlier.
        """
        if params is None:
            params = SamplingParams(max_tokens=None) if is_chat(prompt) else SamplingParams()
        checked_params(params)
        chat: ChatAnswers | None = None
        text_decoder: TextDecoder | None = None
        if is_chat(prompt):
            chat = self.chat_answers(cast(Sequence[Message], prompt), **template_options)
            template_options = chat.template_options
            params = chat.constrained(params)
            text_decoder = chat.text_decoder()
        tokenized = tokenize_prompt(
            prompt, self._tokenizer, self.max_model_len, params, drop_turns=drop_turns, **template_options
        )
        if isinstance(self._tokenizer, NoTokenizer):
            self._tokenizer.check(params)
        if self._chat_stop and is_chat(prompt):
            params = replace(params, stop=(*(params.stop or ()), *self._chat_stop))
        grammar = self._grammar(params, chat)
        scorer: RequestScorer | None = None
        if isinstance(params, SearchParams) and params.is_scored:
            scorer = self._scorer(prompt, tokenized.token_ids, params, priority, template_options)
        return self._engine.submit(
            tokenized.token_ids,
            params,
            prompt=tokenized.text,
            stream=stream,
            rows=rows,
            dropped_messages=tokenized.dropped_messages,
            priority=priority,
            grammar=grammar,
            text_decoder=text_decoder,
            scorer=scorer,
            sink=sink,
        )

    def parts_of(self, prompt: Prompt, template_options: Mapping[str, Any]) -> StreamParts | None:
        """What takes the answers to a prompt apart as their events come; None where it is no chat."""
        if not is_chat(prompt):
            return None
        return StreamParts(self.chat_answers(cast(Sequence[Message], prompt), **template_options))

    def _grammar(self, params: SamplingParams, chat: ChatAnswers | None) -> Grammar | None:
        asked = params.structured_outputs
        if self._grammars is None or asked is None or params.max_tokens == 0:
            return None
        try:
            return self._grammars.compile(as_structured_outputs(asked))
        except InvalidRequestError as error:
            raise error if chat is None else chat.explained(error) from None

    def _scorer(
        self,
        prompt: Prompt,
        token_ids: Sequence[int],
        params: SearchParams,
        priority: int,
        template_options: Mapping[str, Any],
    ) -> RequestScorer:
        """What scores the answers of a search. token_ids: the prompt's own."""
        query = params.query
        if query is None and is_chat(prompt):
            query = last_user_text(cast(Sequence[Message], prompt))
        elif query is None:
            query = prompt if isinstance(prompt, str) else self.tokenizer.decode(token_ids)
        if not query:
            raise InvalidRequestError(
                "[query] needs a text for the scorer, got a prompt without one; give query", param="query"
            )
        if callable(params.scorer):
            return RequestScorer(getattr(params.scorer, "__name__", type(params.scorer).__name__), query, params.scorer)
        if params.scorer == "reranker":
            return RequestScorer("reranker", query, self.reranker.score)

        def score(query: str, answers: list[str]) -> list[float]:
            if is_chat(prompt):
                options = {name: value for name, value in template_options.items() if name != "continue_final_message"}
                prefix = self.tokenizer.apply_chat_template([{"role": "user", "content": query}], **options)
            elif isinstance(prompt, str) or params.query is not None:
                prefix = self.tokenizer.encode(query)
            else:
                prefix = list(token_ids)
            asked = replace(SCORE_PARAMS, cache_salt=params.cache_salt)
            return likelihoods(
                lambda ids: self._engine.submit(ids, asked, priority=priority, is_inner=True),
                prefix,
                [self.tokenizer.encode(answer, add_special_tokens=False) for answer in answers],
                self.vocab_size,
            )

        return RequestScorer("likelihood", query, score)

    def _rows(self, token_ids: Sequence[int], kind: Rows) -> npt.NDArray[np.float32]:
        return self.submit(token_ids, SCORE_PARAMS, rows=kind).rows()

    def close(self, drain_s: float = 0.0) -> None:
        """Refuses new requests, lets running ones go on for up to `drain_s` seconds, ends the rest with
        EngineClosedError and frees the model. Again: nothing."""
        self._engine.close(drain_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class TextStream(Iterator[StreamEvent]):
    """The events of one request. `close` cancels what is left of it; so does letting go of the stream."""

    def __init__(self, handle: RequestHandle, parts: StreamParts | None = None) -> None:
        self._handle = handle
        self._parts = parts
        self._events = iter(handle)
        self._is_over = False

    @property
    def request_id(self) -> str:
        return self._handle.request_id

    def __iter__(self) -> TextStream:
        return self

    def __next__(self) -> StreamEvent:
        if self._is_over:
            raise StopIteration
        try:
            event = next(self._events)
        except KeyboardInterrupt:
            self.close()
            raise
        except BaseException:
            self._is_over = True
            raise
        self._is_over = event.output is not None
        return event if self._parts is None else self._parts.add(event)

    def close(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._handle.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_is_over"):
            self.close()


def params_for(prompts: Sequence[Prompt], params: Params) -> list[SamplingParams]:
    if params is None:
        return [SamplingParams()] * len(prompts)
    if isinstance(params, SamplingParams) or not isinstance(params, (list, tuple)):
        return [checked_params(params)] * len(prompts)
    if len(params) != len(prompts):
        raise InvalidRequestError(
            f"[params] need one for all prompts or one for each of the {len(prompts)}, got {len(params)}",
            param="params",
        )
    return [checked_params(own) for own in params]


def _checked_defaults(defaults: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if defaults is None:
        return {}
    if not isinstance(defaults, Mapping):
        raise ConfigError(f"[sampling_defaults] must be a mapping of field names, got {type(defaults).__name__}")
    try:
        SamplingParams.from_dict({name: value for name, value in defaults.items() if value is not None})
    except InvalidRequestError as error:
        raise ConfigError(f"[sampling_defaults] {error}") from error
    return defaults
