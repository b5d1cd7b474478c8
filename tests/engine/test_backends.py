"""What a backend chooses when nobody does, and what it refuses."""

import dataclasses
import types
from pathlib import Path

import numpy as np
import pytest
from models_factory import make_checkpoint

from llm_decoder import LLM, SamplingParams, backends, devices
from llm_decoder.backends import BackendOptions, create_backend
from llm_decoder.errors import BackendError, ConfigError, NotEnoughMemoryError
from llm_decoder.loading import load_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("models") / "llama", "llama", seed=0)


@pytest.fixture(scope="module")
def floats(folder):
    return load_model(folder, dtype="float32")


@pytest.fixture(scope="module")
def int8(folder):
    return load_model(folder, quantization="int8", use_cache=False)


def test_kv_follows_the_precision_of_the_weights(folder, floats, int8):
    bfloat16 = load_model(folder, dtype="bfloat16", use_cache=False)
    assert create_backend(bfloat16, BackendOptions()).info()["kv_cache_dtype"] == "bfloat16"
    assert create_backend(floats, BackendOptions()).info()["kv_cache_dtype"] == "float32"
    assert create_backend(int8, BackendOptions()).info()["kv_cache_dtype"] == "int8"
    assert create_backend(int8, BackendOptions(kv_cache_dtype="float32")).info()["kv_cache_dtype"] == "float32"


def n_pages(backend):
    return backend.cache.stats()["n_pages"]


def test_the_pool_holds_four_sequences_of_full_length_or_many_short_ones(int8, monkeypatch):
    backend = create_backend(int8, BackendOptions(page_size=16))
    max_len = int8.config.max_model_len
    assert backend.max_model_len == max_len
    assert n_pages(backend) == -(-32768 // max_len) * -(-max_len // 16)
    monkeypatch.setattr(backends, "DEFAULT_POOL_TOKENS", 64)
    assert n_pages(create_backend(int8, BackendOptions(page_size=16))) == 4 * -(-max_len // 16)


def test_the_pool_is_no_more_than_a_quarter_of_the_memory_and_the_context_what_it_holds(int8, monkeypatch):
    page_bytes = create_backend(int8, BackendOptions()).cache.page_bytes()[0]
    monkeypatch.setattr(backends, "available_memory_bytes", lambda: 3 * 4 * page_bytes)
    backend = create_backend(int8, BackendOptions())
    assert (n_pages(backend), backend.max_model_len) == (3, min(96, int8.config.max_model_len))


def test_the_cpu_has_no_second_tier(int8):
    for kv_tier_bytes in (None, 0):
        backend = create_backend(int8, BackendOptions(kv_tier_bytes=kv_tier_bytes))
        assert backend.cache.stats()["n_tier_slots"] == 0
    with pytest.raises(ConfigError, match=r"kv_tier_bytes.*raise kv_cache_bytes"):
        create_backend(int8, BackendOptions(kv_tier_bytes=1 << 20))
    with pytest.raises(ConfigError, match="in host memory already"):  # before the model is looked for
        LLM("no/such/model", device="cpu", kv_tier_bytes=1 << 20)


def test_a_pool_too_small_for_one_sequence_is_refused_with_what_it_needs(int8):
    page_bytes = create_backend(int8, BackendOptions()).cache.page_bytes()[0]
    n_tokens = int8.config.max_model_len
    with pytest.raises(NotEnoughMemoryError, match=f"{n_tokens} tokens needs .*the pool has {page_bytes}; raise"):
        create_backend(int8, BackendOptions(kv_cache_bytes=page_bytes, max_model_len=n_tokens))
    with pytest.raises(NotEnoughMemoryError, match="raise kv_cache_bytes"):
        create_backend(int8, BackendOptions(kv_cache_bytes=10))
    assert create_backend(int8, BackendOptions(kv_cache_bytes=page_bytes)).max_model_len == 32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "tpu"}, "device"),
        ({"device": "cuda:"}, "device"),
        ({"device": 0}, "device"),
        ({"page_size": 8}, "page_size"),
        ({"page_size": 24}, "page_size"),
        ({"threads": 0}, "threads"),
        ({"max_tokens_per_step": 0}, "max_tokens_per_step"),
        ({"max_model_len": 0}, "max_model_len"),
        ({"max_model_len": 1 << 20}, "max_model_len"),
        ({"kv_cache_bytes": 0}, "kv_cache_bytes"),
        ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype"),
        ({"isa": "neon"}, "isa"),
        ({"isa": None}, "isa"),
        ({"deterministic": "yes"}, "deterministic"),
    ],
)
def test_an_option_out_of_its_limits_is_refused_by_name(int8, options, message):
    with pytest.raises(ConfigError, match=message):
        create_backend(int8, BackendOptions(**options))


def fake_cuda(*capabilities, failure="", versions=(0, 13000)):
    """An extension on a machine with such devices, or whose runtime says `failure`. versions: of CUDA, the driver's and
    its own."""

    def n_devices():
        if failure:
            raise RuntimeError(failure)
        return len(capabilities)

    def describe_device(index):
        facts = {"name": f"GPU {index}", "n_sms": 132, "free_bytes": 5 << 30, "total_bytes": 6 << 30}
        return facts | {"compute_capability": capabilities[index]}

    return types.SimpleNamespace(
        n_devices=n_devices,
        describe_device=describe_device,
        cuda_versions=lambda: versions,
        TARGETS="sm_80 sm_89 sm_90a compute_90",
    )


def test_an_extension_that_is_not_there_or_does_not_load_says_so(monkeypatch):
    def import_module(name):
        assert name == "llm_decoder._cuda"
        raise failure

    monkeypatch.setattr(backends.importlib, "import_module", import_module)
    failure = ModuleNotFoundError("no module")
    with pytest.raises(BackendError, match=r"this build has no CUDA extension .*LLM_DECODER_CUDA=on"):
        backends.load_cuda()
    failure = ImportError("libstdc++.so.6: version not found")
    with pytest.raises(BackendError, match="the CUDA extension does not load: libstdc"):
        backends.load_cuda()


def test_a_device_that_is_not_there_is_refused_with_the_reason(int8, monkeypatch):
    def fails():
        raise BackendError("this build has no CUDA extension")

    monkeypatch.setattr(backends, "load_cuda", fails)
    with pytest.raises(
        BackendError, match=r"\[device\] cuda cannot be used: this build has no CUDA extension; use dev"
    ):
        create_backend(int8, BackendOptions(device="cuda"))
    monkeypatch.setattr(backends, "load_cuda", lambda: fake_cuda((9, 0), (7, 5)))
    with pytest.raises(BackendError, match=r"cuda:1 cannot be used: its compute capability is 7\.5"):
        create_backend(int8, BackendOptions(device="cuda:1"))
    with pytest.raises(BackendError, match=r"cuda:2 cannot be used: there are cuda, cuda:1; use device='cpu'"):
        create_backend(int8, BackendOptions(device="cuda:2"))
    with pytest.raises(BackendError, match=r"needs weights packed for cuda, got those of the CPU; load it with that"):
        create_backend(int8, BackendOptions(device="cuda:0"))


def test_an_isa_that_this_machine_lacks_is_refused_with_those_that_it_has_before_a_model_is_looked_at(monkeypatch):
    with pytest.raises(ConfigError, match=r"^\[isa\] must be auto or one of .*generic"):
        LLM("no/such/model/anywhere", isa="neon")
    monkeypatch.setenv("LLM_DECODER_CPU_ISA", "neon")
    with pytest.raises(ConfigError, match=r"^\[LLM_DECODER_CPU_ISA\] must be auto or one of .*generic"):
        LLM("no/such/model/anywhere")


def test_the_kernels_are_those_named_then_those_forced_then_the_best(int8, monkeypatch):
    best = backends.devices()[0].isas[0]
    assert create_backend(int8, BackendOptions()).info()["isa"] == backends.choose_isa() == best
    monkeypatch.setenv("LLM_DECODER_CPU_ISA", "generic")
    assert create_backend(int8, BackendOptions()).info()["isa"] == backends.choose_isa() == "generic"
    assert create_backend(int8, BackendOptions(isa=best)).info()["isa"] == backends.choose_isa(best) == best


@pytest.mark.parametrize("kv_cache_dtype", ["float32", "bfloat16", "int8"])
def test_float32_gives_the_same_bits_alone_in_a_batch_and_in_chunks(folder, kv_cache_dtype):
    options = {"dtype": "float32", "kv_cache_dtype": kv_cache_dtype, "deterministic": True}
    prompts = [[(7 * i + 3 * j) % 300 for j in range(n)] for i, n in enumerate((1, 3, 31, 33, 127))]
    params = SamplingParams(max_tokens=12, temperature=1.0, seed=5, logprobs=2, ignore_eos=True)

    def found(llm, outputs):
        rows = [llm.logits(output.prompt_token_ids + output.outputs[0].token_ids) for output in outputs]
        return [
            (output.outputs[0].token_ids, output.outputs[0].logprobs, row)
            for output, row in zip(outputs, rows, strict=True)
        ]

    with LLM(folder, threads=1, **options) as llm:
        alone = found(llm, [llm.generate([prompt], params)[0] for prompt in prompts])
    with LLM(folder, threads=2, **options) as llm:
        batch = found(llm, llm.generate(prompts, params))
        again = found(llm, llm.generate(prompts, params))  # prefixes hit
    with LLM(folder, threads=2, max_tokens_per_step=7, **options) as llm:
        chunks = found(llm, llm.generate(prompts, params))
    for other in (batch, again, chunks):
        for (tokens, logprobs, rows), (other_tokens, other_logprobs, other_rows) in zip(alone, other, strict=True):
            assert (tokens, logprobs) == (other_tokens, other_logprobs)
            np.testing.assert_array_equal(rows, other_rows)


def test_a_missing_weight_is_named(int8):
    weights = {name: weight for name, weight in int8.weights.items() if name != "layer_0/ln1"}
    with pytest.raises(BackendError, match="layer_0/ln1"):
        create_backend(dataclasses.replace(int8, weights=weights), BackendOptions())


def test_every_gpu_is_named_and_one_too_old_says_so(monkeypatch):
    monkeypatch.setattr(backends, "load_cuda", lambda: fake_cuda((9, 0), (7, 5)))
    _, first, second = devices()
    assert (first.name, first.is_usable, first.memory_bytes) == ("cuda", True, 5 << 30)
    assert first.description == "GPU 0, compute capability 9.0, 132 multiprocessors"
    assert (second.name, second.is_usable) == ("cuda:1", False)
    assert second.reason == "its compute capability is 7.5; the kernels need 8.0 or above"


@pytest.mark.parametrize(
    ("cuda", "reason"),
    [
        (fake_cuda(failure="[n_devices] cudaErrorInsufficientDriver: too old"), "no NVIDIA driver is loaded (["),
        (fake_cuda(failure="[n_devices] cudaErrorNoDevice: none"), "[n_devices] cudaErrorNoDevice: none"),
        (fake_cuda(), "the driver knows no NVIDIA GPU"),
    ],
)
def test_an_extension_without_a_driver_or_a_gpu_says_which(monkeypatch, cuda, reason):
    monkeypatch.setattr(backends, "load_cuda", lambda: cuda)
    (found,) = devices()[1:]
    assert (found.name, found.is_usable) == ("cuda", False)
    assert found.reason.startswith(reason)


def test_devices_name_the_cpu_first_and_say_why_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(backends, "load_cuda", lambda: fake_cuda(failure="no driver"))
    cpu, cuda = devices()
    assert (cpu.name, cpu.is_usable, cpu.threads >= 1, cpu.memory_bytes > 0) == ("cpu", True, True, True)
    assert cpu.isas[-1] == "generic"
    assert (cuda.name, cuda.is_usable) == ("cuda", False)


def test_limits_are_read_from_memory_that_no_cache_holds_but_not_from_all_that_is_free(monkeypatch):
    monkeypatch.setattr(backends, "last_cache_bytes", lambda: 1 << 40)
    monkeypatch.setattr(backends, "available_memory_bytes", lambda: 64 << 20)
    limits = backends.open_limits(1, "generic")
    assert (limits.threads, limits.isa, limits.n_bytes) == (1, "generic", 16 << 20)
    monkeypatch.setattr(backends, "available_memory_bytes", lambda: 1 << 62)
    monkeypatch.setattr(backends, "last_cache_bytes", lambda: 1 << 58)
    with pytest.raises(NotEnoughMemoryError, match=f"{1 << 60} bytes to read do not fit"):
        backends.open_limits(1, "generic")


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_every_family_generates_and_scores_what_it_generates(tmp_path, family):
    with LLM(make_checkpoint(tmp_path / family, family, seed=1), dtype="float32") as llm:
        prompt = list(range(1, 20))
        output = llm.generate([prompt], params=None)[0]
        tokens = prompt + output.outputs[0].token_ids
        assert llm.logits(tokens).shape == (len(tokens), llm.vocab_size)
        scores = llm.score(tokens)[len(prompt) - 1 :]
        np.testing.assert_allclose(scores.sum(), output.outputs[0].cumulative_logprob, rtol=1e-4)


def test_only_backends_imports_the_core():
    package = Path(backends.__file__).parent
    for module in ("llm_decoder._core", "llm_decoder._cuda"):
        importers = {path.name for path in package.rglob("*.py") if module in path.read_text(encoding="utf-8")}
        assert importers == {"backends.py"}, module


def test_a_step_of_a_gpu_takes_more_tokens_unless_told_how_many():
    assert [BackendOptions().tokens_per_step(on_gpu=on_gpu) for on_gpu in (False, True)] == [512, 4096]
    assert [BackendOptions(max_tokens_per_step=7).tokens_per_step(on_gpu=on_gpu) for on_gpu in (False, True)] == [7, 7]


@pytest.mark.parametrize(
    "option", ["threads", "kv_cache_bytes", "kv_tier_bytes", "page_size", "max_model_len", "max_tokens_per_step"]
)
@pytest.mark.parametrize("value", ["32", 32.0, True, -1])
def test_an_option_that_is_no_whole_number_is_refused_by_name_before_a_model_is_looked_at(option, value):
    with pytest.raises(ConfigError, match=rf"^\[{option}\] must be an integer"):
        BackendOptions(**{option: value})
