"""GET /metrics, read as Prometheus reads it: every name of the contract, and numbers that add up to what was asked."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from direct import DirectServer, ready_service
from fakes import ByteTokenizer, FakeBackend, make_engine

from llm_decoder.llm import LLM
from llm_decoder.serving.errors import HttpError
from llm_decoder.serving.exchange import Incoming
from llm_decoder.serving.metrics import ENDPOINTS
from llm_decoder.serving.service import Service
from llm_decoder.serving.settings import ServerSettings
from llm_decoder.speculation import SpeculationOptions

parser = pytest.importorskip("prometheus_client.parser")

ROOT = Path(__file__).parents[2]
GAUGES = {
    *("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "cache_config_info", "server_state"),
    *("beam_groups_live", "kv_tier_usage_perc"),
}
COUNTERS = {
    *("prompt_tokens", "generation_tokens", "prefix_cache_queries", "prefix_cache_hits", "num_preemptions"),
    *("request_success", "corrupted_requests", "admission_rejections", "spec_decode_num_drafts"),
    *("spec_decode_num_draft_tokens", "spec_decode_num_accepted_tokens", "kv_cow_copies", "kv_evictions"),
    *("beam_pruned", "rerank_pairs", "num_preemptions_swapped", "num_preemptions_recomputed"),
    *("kv_tier_stores", "kv_tier_loads"),
}
OF_REQUESTS = {
    *("time_to_first_token_seconds", "request_time_per_output_token_seconds", "e2e_request_latency_seconds"),
    *("request_queue_time_seconds", "request_prefill_time_seconds", "request_decode_time_seconds"),
    *("request_inference_time_seconds", "request_prompt_tokens", "request_generation_tokens"),
}
HISTOGRAMS = {
    *OF_REQUESTS,
    *("rerank_latency_seconds", "inter_token_latency_seconds", "iteration_tokens_total", "kv_block_lifetime_seconds"),
    *("kv_block_idle_before_evict_seconds", "kv_block_reuse_gap_seconds"),
}


_services: list[Service] = []


@pytest.fixture(autouse=True)
def _close_services() -> Iterator[None]:
    yield
    while _services:
        _services.pop().close(0)


def server_of(backend: FakeBackend | None = None, settings: ServerSettings | None = None, **options: Any):
    engine = make_engine(backend, **options)
    server = DirectServer(ready_service(LLM.over(engine, ByteTokenizer(), "fake"), settings))
    server.engine = engine
    _services.append(server.service)
    return server


def scrape(server: DirectServer) -> str:
    reply, parts = server.answer(Incoming("GET", "/metrics", "m"))
    assert (reply.status, parts) == (200, None)
    assert reply.media_type == "text/plain; version=0.0.4; charset=utf-8"
    return reply.body.decode()


def families(server: DirectServer) -> dict[str, Any]:
    found = {}
    for family in parser.text_string_to_metric_families(scrape(server)):
        assert family.name not in found
        found[family.name.removeprefix("llm_decoder:")] = family
    return found


def value(server: DirectServer, name: str, **labels: str) -> float:
    """Of a gauge, a counter or a histogram's _count or _sum."""
    (number,) = [
        sample.value
        for family in parser.text_string_to_metric_families(scrape(server))
        for sample in family.samples
        if sample.name == f"llm_decoder:{name}" and labels.items() <= sample.labels.items()
    ]
    return number


def complete(server: DirectServer, prompt: Any = "Hello", **fields: Any) -> Any:
    fields = {"max_tokens": 5, "ignore_eos": True, "temperature": 0} | fields
    status, answer, _ = server.post("/v1/completions", {"prompt": prompt} | fields)
    assert status == 200
    return answer


def test_every_name_is_there_with_its_kind_and_no_other() -> None:
    found = families(server_of())
    own = {name: family.type for name, family in found.items() if not name.startswith("process_")}
    assert {name for name, kind in own.items() if kind == "gauge"} == GAUGES
    assert {name for name, kind in own.items() if kind == "counter"} == COUNTERS
    assert {name for name, kind in own.items() if kind == "histogram"} == HISTOGRAMS
    assert "process_resident_memory_bytes" in found
    for name, family in found.items():
        assert family.documentation.endswith("."), name


def test_no_series_stands_twice_and_all_name_the_model() -> None:
    server = server_of()
    complete(server)
    text = scrape(server)
    series = [line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")]
    assert [name for name, count in Counter(series).items() if count > 1] == []
    assert all('model_name="fake"' in line for line in series if line.startswith("llm_decoder:"))


def test_tokens_and_requests_add_up_to_what_was_asked() -> None:
    server = server_of()
    before = families(server)
    assert all(sample.value == 0 for name in COUNTERS for sample in before[name].samples)
    usages = [
        complete(server, ["Hello", "there"], max_tokens=4)["usage"],
        complete(server, "a longer prompt", n=3, max_tokens=7, temperature=1.0)["usage"],
        complete(server, "x", max_tokens=1)["usage"],
    ]
    events = complete(server, "streamed", stream=True, max_tokens=6, stream_options={"include_usage": True})
    usages.append(events[-1]["usage"])
    n_prompt = sum(usage["prompt_tokens"] for usage in usages)
    n_generated = sum(usage["completion_tokens"] for usage in usages)
    assert n_generated == 2 * 4 + 3 * 7 + 1 + 6
    assert value(server, "prompt_tokens_total") == value(server, "request_prompt_tokens_sum") == n_prompt
    assert value(server, "generation_tokens_total") == value(server, "request_generation_tokens_sum") == n_generated
    n_requests, n_answers = 5, 7
    assert value(server, "request_success_total", finished_reason="length") == n_requests
    assert value(server, "request_success_total", finished_reason="stop") == 0
    for name in OF_REQUESTS - {"request_time_per_output_token_seconds"}:
        assert value(server, f"{name}_count") == n_requests, name
    assert value(server, "request_time_per_output_token_seconds_count") == n_requests - 1  # one had a single token
    assert value(server, "inter_token_latency_seconds_count") == n_generated - n_answers
    # Every token is computed but the last of each answer; found prefixes are not.
    n_computed = n_prompt + n_generated - n_answers - value(server, "prefix_cache_hits_total")
    assert value(server, "iteration_tokens_total_sum") == n_computed
    assert value(server, "num_requests_running") == value(server, "num_requests_waiting") == 0


def test_the_parts_of_a_requests_time_add_up_to_the_whole() -> None:
    server = server_of()
    for _ in range(3):
        complete(server, max_tokens=8)
    queue, prefill, decode, inference, total, first = (
        value(server, f"{name}_seconds_sum")
        for name in (
            *("request_queue_time", "request_prefill_time", "request_decode_time", "request_inference_time"),
            *("e2e_request_latency", "time_to_first_token"),
        )
    )
    assert queue + prefill == pytest.approx(first)
    assert prefill + decode == pytest.approx(inference)
    assert queue + inference == pytest.approx(total)
    assert value(server, "inter_token_latency_seconds_sum") <= decode * 1.5
    assert value(server, "request_time_per_output_token_seconds_sum") == pytest.approx(decode / 7)


def test_buckets_only_grow_up_to_the_count() -> None:
    server = server_of()
    complete(server, n=2, max_tokens=20)
    for name in HISTOGRAMS:
        family = families(server)[name]
        buckets = [sample.value for sample in family.samples if sample.name.endswith("_bucket")]
        bounds = [float(sample.labels["le"]) for sample in family.samples if sample.name.endswith("_bucket")]
        (count,) = [sample.value for sample in family.samples if sample.name.endswith("_count")]
        assert buckets == sorted(buckets)
        assert bounds == sorted(set(bounds))
        assert (bounds[-1], buckets[-1]) == (float("inf"), count)


def test_counters_never_go_back() -> None:
    server = server_of(FakeBackend(n_pages=12))
    last: dict[Any, float] = {}
    for number in range(6):
        complete(server, f"{number} is a prompt of its own, longer than a page", n=1 + number % 3, temperature=1.0)
        now = {
            (sample.name, *sorted(sample.labels.items())): sample.value
            for name in COUNTERS | HISTOGRAMS
            for sample in families(server)[name].samples
        }
        assert all(now[key] >= value for key, value in last.items())
        assert number == 0 or now.keys() == last.keys()
        last = now


def test_a_prefix_that_is_found_counts_as_a_hit_and_as_a_page_used_again() -> None:
    server = server_of()
    prompt = "a prompt that fills some pages of sixteen tokens: " * 2
    complete(server, prompt)
    assert value(server, "prefix_cache_hits_total") == value(server, "kv_block_reuse_gap_seconds_count") == 0
    usage = complete(server, prompt)["usage"]
    hits = value(server, "prefix_cache_hits_total")
    assert hits == usage["prompt_tokens_details"]["cached_tokens"] == 96
    assert value(server, "prefix_cache_queries_total") == 2 * usage["prompt_tokens"]
    assert value(server, "kv_block_reuse_gap_seconds_count") == hits / 16


def test_pages_that_leave_are_counted_by_the_reason_with_their_age() -> None:
    backend = FakeBackend(n_pages=8)
    server = server_of(backend)
    for number in range(4):
        complete(server, f"{number}" * 70)
    evicted = value(server, "kv_evictions_total", reason="room")
    assert evicted == backend.cache.stats()["n_evictions"] > 0
    assert value(server, "kv_evictions_total", reason="cleared") == 0
    assert value(server, "kv_block_lifetime_seconds_count") == evicted
    assert 0 < value(server, "kv_block_idle_before_evict_seconds_sum") < value(server, "kv_block_lifetime_seconds_sum")
    server.engine.call(lambda backend: backend.cache.clear_prefix_index())
    cleared = value(server, "kv_evictions_total", reason="cleared")
    assert cleared > 0
    assert value(server, "kv_block_lifetime_seconds_count") == evicted + cleared
    assert value(server, "kv_cache_usage_perc") == 0


def test_answers_that_share_a_page_copy_it() -> None:
    server = server_of()
    complete(server, "not a whole page", n=4, temperature=1.0)
    assert value(server, "kv_cow_copies_total") == 3


def test_searches_are_counted_with_what_they_let_go_and_what_scorers_read() -> None:
    server = server_of()
    asked = {"prompt": "once upon a time", "width": 4, "max_tokens": 8, "scorer": "likelihood"}
    status, answer, _ = server.post("/generate", asked | {"return_tree": "summary"})
    assert status == 200, answer
    assert value(server, "beam_pruned_total") == answer["tree"]["n_pruned"] > 0
    assert value(server, "rerank_pairs_total") == 4
    assert value(server, "rerank_latency_seconds_count") == 1
    assert value(server, "beam_groups_live") == 0


def test_documents_of_requests_are_counted_with_the_answers_of_searches() -> None:
    class Longest:
        def score(self, query: str, documents: list[str]) -> list[float]:
            return [float(len(document)) for document in documents]

    llm = LLM.over(make_engine(FakeBackend()), ByteTokenizer(), "fake", reranker=Longest())
    server = DirectServer(ready_service(llm))
    _services.append(server.service)
    asked = {"prompt": "once upon a time", "width": 4, "max_tokens": 8, "scorer": "reranker"}
    assert server.post("/generate", asked)[0] == 200
    assert server.post("/v1/rerank", {"query": "a", "documents": ["b", "c", "d"]})[0] == 200
    assert value(server, "rerank_pairs_total") == 4 + 3
    assert value(server, "rerank_latency_seconds_count") == 2


def test_who_gives_way_is_counted() -> None:
    server = server_of(FakeBackend(n_pages=5, max_model_len=80))
    complete(server, ["older " * 4, "younger " * 3], max_tokens=40)
    assert value(server, "num_preemptions_total") > 0


def test_numbers_that_are_not_finite_are_counted_apart_from_other_errors() -> None:
    backend = FakeBackend()
    server = server_of(backend)

    def spoil(history: Any, logits: Any) -> None:
        logits[0] = np.nan

    backend.spoil = spoil
    assert server.post("/v1/completions", {"prompt": "a"})[0] == 500
    assert value(server, "corrupted_requests_total") == 1
    assert value(server, "request_success_total", finished_reason="error") == 1
    assert value(server, "e2e_request_latency_seconds_count") == 1
    assert value(server, "time_to_first_token_seconds_count") == 0


def test_requests_that_find_no_room_are_counted() -> None:
    server = server_of(max_requests=2)
    assert server.post("/v1/completions", {"prompt": ["a", "b", "c"]})[0] == 429
    assert value(server, "admission_rejections_total") == 1
    server = server_of(settings=ServerSettings(max_requests=1))
    server.service.admission.enter()
    with pytest.raises(HttpError):
        server.service.admission.enter()
    assert value(server, "admission_rejections_total") == 1


def test_guessed_tokens_are_counted() -> None:
    server = server_of(speculation=SpeculationOptions("prompt-lookup", 4))
    complete(server, "abcabcabcabcabcabcabcabc", max_tokens=30, logit_bias={"97": 100})
    drafts, drafted, accepted = (
        value(server, f"spec_decode_num_{what}_total") for what in ("drafts", "draft_tokens", "accepted_tokens")
    )
    assert 0 < drafts <= drafted <= 4 * drafts
    assert 0 < accepted <= drafted
    assert value(server, "inter_token_latency_seconds_count") == 29


def test_what_runs_and_waits_is_told_while_it_does() -> None:
    backend = FakeBackend()
    go_on, is_inside = threading.Event(), threading.Event()
    server = server_of(backend, max_num_seqs=1)

    def hold() -> None:
        if len(backend.steps) == 2:
            is_inside.set()
            assert go_on.wait(30)

    backend.before_step = hold
    asker = threading.Thread(target=complete, args=(server, ["first", "second", "third"]), kwargs={"max_tokens": 9})
    asker.start()
    assert is_inside.wait(30)
    seen: list[dict[str, Any]] = []
    scraper = threading.Thread(target=lambda: seen.append(families(server)))
    scraper.start()
    while server.engine._worker.inbox.empty():  # it asks between this step and the next
        time.sleep(0.001)
    go_on.set()
    scraper.join(30)
    asker.join(30)
    assert [seen[0][f"num_requests_{what}"].samples[0].value for what in ("running", "waiting")] == [1, 2]
    assert 0 < seen[0]["kv_cache_usage_perc"].samples[0].value < 0.1


def test_how_the_cache_is_made_is_told_as_labels(storyteller: LLM) -> None:
    (sample,) = families(DirectServer(ready_service(storyteller)))["cache_config_info"].samples
    stats = storyteller.stats()
    assert sample.value == 1
    sizes = {"block_size": str(stats["page_size"]), "num_cpu_blocks": str(stats["pages"]["n_pages"])}
    expected = sizes | {"num_gpu_blocks": "0", "device": "cpu"}
    assert expected.items() <= sample.labels.items()
    assert sample.labels["cache_dtype"] == stats["backend"]["kv_cache_dtype"]


def test_a_models_name_is_escaped() -> None:
    name = 'a "quoted"\\\nname'
    server = server_of(settings=ServerSettings(served_model_name=name))
    assert value(server, "prompt_tokens_total", model_name=name) == 0


def test_services_do_not_see_each_others_numbers() -> None:
    one, other = server_of(), server_of()
    complete(one)
    assert value(one, "generation_tokens_total") == 5
    assert value(other, "generation_tokens_total") == 0


def state_of(server: DirectServer) -> str:
    (state,) = [sample.labels["state"] for sample in families(server)["server_state"].samples if sample.value]
    return state


def test_while_the_model_loads_the_state_and_the_process_are_told() -> None:
    server = DirectServer(Service(lambda: None))
    found = families(server)
    assert {name for name in found if not name.startswith("process_")} == {"server_state"}
    assert "process_resident_memory_bytes" in found
    assert state_of(server) == "loading"


def test_a_model_that_cannot_be_loaded_is_told() -> None:
    def fail() -> LLM:
        raise OSError("no such folder")

    service = Service(fail)
    service.start()
    assert not service.wait(30)
    assert state_of(DirectServer(service)) == "failed"


def test_what_is_told_of_a_model_that_is_ready_needs_none_that_is_still_there() -> None:
    service = server_of().service
    assert service.told_when_ready() == {"model": "fake", "device": "fake"}
    service.close(0)
    assert service.told_when_ready() == {}


def test_all_counts_are_told_while_answers_end() -> None:
    backend = FakeBackend()
    go_on, is_inside = threading.Event(), threading.Event()
    server = server_of(backend)

    def hold() -> None:
        if len(backend.steps) == 2:
            is_inside.set()
            assert go_on.wait(30)

    backend.before_step = hold
    asker = threading.Thread(target=complete, args=(server,), kwargs={"max_tokens": 9})
    asker.start()
    assert is_inside.wait(30)
    closer = threading.Thread(target=server.service.close, args=(30.0,))
    closer.start()
    while not server.engine.is_closed:
        time.sleep(0.001)
    seen: list[dict[str, Any]] = []
    scraper = threading.Thread(target=lambda: seen.append(families(server)))
    scraper.start()
    while server.engine._worker.inbox.qsize() < 2:  # what ends it, and the scrape
        time.sleep(0.001)
    go_on.set()
    for thread in (scraper, asker, closer):
        thread.join(30)
    assert seen[0]["num_requests_running"].samples[0].value == 1
    assert [s.labels["state"] for s in seen[0]["server_state"].samples if s.value] == ["closing"]


def test_when_the_engine_is_gone_a_scrape_is_still_answered() -> None:
    server = server_of()
    server.engine.close()
    assert state_of(server) == "failed"
    server.service.close(0)
    assert state_of(server) == "closing"
    assert "num_requests_running" not in families(server)


def test_a_key_is_needed_where_keys_are() -> None:
    assert [endpoint.access for endpoint in ENDPOINTS] == ["key"]


def test_the_dashboard_asks_for_every_name_and_for_none_that_is_not_there() -> None:
    board = json.loads((ROOT / "examples" / "grafana_dashboard.json").read_text())
    samples = {sample.name for family in families(server_of()).values() for sample in family.samples}
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    asked = {
        name
        for panel in panels
        for target in panel["targets"]
        for name in re.findall(r"llm_decoder:\w+|process_\w+", target["expr"])
    }
    assert asked <= samples
    shown = {re.sub("_(total|bucket|sum|count)$", "", name.removeprefix("llm_decoder:")) for name in asked}
    assert shown | {"cache_config_info"} >= GAUGES | COUNTERS | HISTOGRAMS  # that one lists the models
    places = [tuple(panel["gridPos"].values()) for panel in board["panels"]]
    assert len({panel["id"] for panel in board["panels"]}) == len(set(places)) == len(board["panels"])
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    assert all("$model_name" in expression for expression in expressions if "llm_decoder:" in expression)


def test_the_documentation_names_every_metric() -> None:
    text = (ROOT / "docs" / "monitoring.md").read_text()
    assert {name for name in GAUGES | COUNTERS | HISTOGRAMS if f"`{name}`" not in text} == set()
