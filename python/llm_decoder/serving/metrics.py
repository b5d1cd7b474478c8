"""GET /metrics: the engine's counts as Prometheus reads them, under the names of vLLM with this project's prefix.

Nothing here runs a token: the engine counts as it goes (EngineCore.stats), a scrape asks it once between two steps.
A scrape is answered whatever the server is doing: when it loads or ends is when it is watched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, get_args

from llm_decoder.serving.exchange import Endpoint, Incoming, Reply
from llm_decoder.serving.service import Service, State

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

__all__ = ["ENDPOINTS", "PREFIX", "metrics"]

PREFIX = "llm_decoder:"
# What every Prometheus reads; names are of the old alphabet anyway.
_MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Stats = Mapping[str, Any]

_GAUGES: tuple[tuple[str, str, Callable[[Stats], float]], ...] = (
    ("num_requests_running", "Answers that hold pages of the KV cache.", lambda stats: stats["n_running"]),
    (
        "num_requests_waiting",
        "Answers that wait for pages, and requests on their way to the engine.",
        lambda stats: stats["n_waiting"] + stats["n_submitted"],
    ),
    ("beam_groups_live", "Searches that run or wait.", lambda stats: stats["n_searches"]),
    (
        "kv_cache_usage_perc",
        "The part of the KV cache's pages that is neither free nor could be at once; 1 is all of it.",
        lambda stats: 1 - (stats["pages"]["n_free"] + stats["pages"]["n_evictable"]) / stats["pages"]["n_pages"],
    ),
    (
        "kv_tier_usage_perc",
        "The part of the second tier's slots that hold a page; 1 is all of them.",
        lambda stats: stats["pages"]["n_tier_used"] / max(1, stats["pages"]["n_tier_slots"]),
    ),
)
# Names without _total, which the client library adds.
_COUNTERS: tuple[tuple[str, str, Callable[[Stats], float]], ...] = (
    ("prompt_tokens", "Tokens of prompts taken.", lambda stats: stats["n_prompt_tokens"]),
    ("generation_tokens", "Tokens generated.", lambda stats: stats["n_generated_tokens"]),
    ("prefix_cache_queries", "Tokens looked up in the prefix cache.", lambda stats: stats["pages"]["n_query_tokens"]),
    ("prefix_cache_hits", "Tokens found in the prefix cache.", lambda stats: stats["pages"]["n_hit_tokens"]),
    ("num_preemptions", "Answers whose pages were taken from them for a while.", lambda stats: stats["n_preemptions"]),
    (
        "num_preemptions_swapped",
        "Of these, those that came back with pages out of the KV cache's second tier.",
        lambda stats: stats["n_swapped"],
    ),
    (
        "num_preemptions_recomputed",
        "Of these, those that came back without: their tokens were computed again.",
        lambda stats: stats["n_recomputed"],
    ),
    ("kv_tier_stores", "Evicted pages that went to the second tier.", lambda stats: stats["pages"]["n_stored"]),
    ("kv_tier_loads", "Pages that came back from the second tier.", lambda stats: stats["pages"]["n_loaded"]),
    (
        "corrupted_requests",
        "Requests that ended because the model gave numbers that are not finite.",
        lambda stats: stats["n_corrupted"],
    ),
    (
        "beam_pruned",
        "Nodes of search trees that were let go, of searches that are over.",
        lambda stats: stats["n_pruned"],
    ),
    (
        "rerank_pairs",
        "Answers and documents that a scorer has read.",
        lambda stats: stats["n_scored"],
    ),
    ("admission_rejections", "Requests refused because too many were inside.", lambda stats: stats["n_refused"]),
    ("spec_decode_num_drafts", "Times that tokens were guessed ahead.", lambda stats: stats["n_drafts"]),
    ("spec_decode_num_draft_tokens", "Tokens guessed ahead.", lambda stats: stats["n_drafted_tokens"]),
    ("spec_decode_num_accepted_tokens", "Guessed tokens that were right.", lambda stats: stats["n_accepted_tokens"]),
    (
        "kv_cow_copies",
        "Pages copied because one of several answers that shared them went on.",
        lambda stats: stats["pages"]["n_copies"],
    ),
)
_HISTOGRAMS = (
    ("time_to_first_token_seconds", "time_to_first_token", "From a request's submission to its first token."),
    ("inter_token_latency_seconds", "inter_token", "Between two tokens of an answer."),
    ("request_time_per_output_token_seconds", "per_token", "Of a request: the mean time between two tokens."),
    ("e2e_request_latency_seconds", "total", "From a request's submission to its end."),
    ("request_queue_time_seconds", "queue", "From a request's submission to its place in a step."),
    ("request_prefill_time_seconds", "prefill", "From a request's place in a step to its first token."),
    ("request_decode_time_seconds", "decode", "From a request's first token to its end."),
    ("request_inference_time_seconds", "inference", "From a request's place in a step to its end."),
    ("request_prompt_tokens", "prompt_tokens", "Tokens of a request's prompt."),
    ("request_generation_tokens", "generated_tokens", "Tokens generated for a request, over all its answers."),
    (
        "rerank_latency_seconds",
        "scoring",
        "From when a scorer is given answers or documents to their scores.",
    ),
    ("iteration_tokens_total", "step_tokens", "Tokens computed in a step."),
    (
        "kv_block_lifetime_seconds",
        "page_lifetime",
        "Of a page of the prefix cache: from its first use to its eviction.",
    ),
    (
        "kv_block_idle_before_evict_seconds",
        "page_idle_before_eviction",
        "Of a page of the prefix cache: from its last use to its eviction.",
    ),
    ("kv_block_reuse_gap_seconds", "page_reuse_gap", "Of a page of the prefix cache: unused before it was used again."),
)


def metrics(service: Service, incoming: Incoming) -> Reply:
    """While there is no engine that counts: the server's state, and the process."""
    from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

    stats = service.stats()
    name = service.settings.served_model_name or ("" if stats is None else stats["model"])
    registry = CollectorRegistry()  # of this scrape: no other service or library of the process writes into it
    registry.register(_State(name, service.state))
    if stats is not None:
        n_refused = stats["n_refused"] + service.admission.n_refused
        registry.register(_Snapshot(name, service.scoring.added_to(stats) | {"n_refused": n_refused}))
    ProcessCollector(registry=registry)
    return Reply(generate_latest(registry), media_type=_MEDIA_TYPE)


class _State:
    """What the server is doing, as one family; its model has no name before it is loaded."""

    def __init__(self, model_name: str, state: State) -> None:
        self._model_name = model_name
        self._state = state

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import GaugeMetricFamily

        words = "1 for what the server does: loading, ready, closing (it lets answers end), failed."
        gauge = GaugeMetricFamily(PREFIX + "server_state", words, labels=["model_name", "state"])
        for state in get_args(State):
            gauge.add_metric([self._model_name, state], state == self._state)
        yield gauge


class _Snapshot:
    """EngineCore.stats as families of Prometheus, all with the label model_name."""

    def __init__(self, model_name: str, stats: Stats) -> None:
        self._model_name = model_name
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        stats, model = self._stats, self._model_name
        for name, words, value in _GAUGES:
            gauge = GaugeMetricFamily(PREFIX + name, words, labels=["model_name"])
            gauge.add_metric([model], value(stats))
            yield gauge
        for name, words, value in _COUNTERS:
            counter = CounterMetricFamily(PREFIX + name, words, labels=["model_name"])
            counter.add_metric([model], value(stats))
            yield counter
        for name, words, label, counts in (
            ("request_success", "Requests that are over, by how they ended.", "finished_reason", stats["n_finished"]),
            ("kv_evictions", "Pages that left the prefix cache, by the reason.", "reason", _evictions(stats)),
        ):
            counter = CounterMetricFamily(PREFIX + name, words, labels=["model_name", label])
            for which, count in counts.items():
                counter.add_metric([model, which], count)
            yield counter
        for name, key, words in _HISTOGRAMS:
            counted = stats["histograms"][key]
            histogram = HistogramMetricFamily(PREFIX + name, words, labels=["model_name"])
            histogram.add_metric([model], _buckets(counted["bounds"], counted["counts"]), counted["sum"])
            yield histogram
        facts = _cache_facts(stats)
        info = GaugeMetricFamily(
            PREFIX + "cache_config_info", "How the KV cache is made.", labels=["model_name", *facts]
        )
        info.add_metric([model, *facts.values()], 1)
        yield info


def _evictions(stats: Stats) -> dict[str, int]:
    """room: for pages of others. cleared: all at once, by who asked for it or after numbers that were not finite."""
    return {"room": stats["pages"]["n_evictions"], "cleared": stats["pages"]["n_cleared"]}


def _buckets(bounds: list[float], counts: list[int]) -> list[tuple[str, float]]:
    """Prometheus counts what is at most each bound."""
    total = 0
    buckets = []
    for bound, count in zip([*map(float, bounds), float("inf")], counts, strict=True):
        total += count
        buckets.append(("+Inf" if bound == float("inf") else repr(bound), float(total)))
    return buckets


def _cache_facts(stats: Stats) -> dict[str, str]:
    backend, pages = stats["backend"], stats["pages"]
    on_gpu = backend["device"].startswith("cuda")
    facts = {
        "block_size": stats["page_size"],
        "num_gpu_blocks": pages["n_pages"] if on_gpu else 0,
        "num_cpu_blocks": 0 if on_gpu else pages["n_pages"],
        "cache_dtype": backend.get("kv_cache_dtype", "unknown"),
        "cache_bytes": pages["pool_bytes"],
        "enable_prefix_caching": True,
        "max_model_len": stats["max_model_len"],
        "device": backend["device"],
    }
    return {name: str(value) for name, value in facts.items()}


ENDPOINTS = (Endpoint("GET", "/metrics", metrics, "Counts, rates and times of the server for Prometheus"),)
