"""benchmarks/encoders.py without its peers: what is counted, compared and padded."""

import encoders
import numpy as np
import pytest


class FakeEngine:
    def __init__(self, second: float, rows: list[list[float]]) -> None:
        self.second, self.rows, self.n_calls = second, np.array(rows, np.float32), 0

    def __call__(self, token_ids: list[list[int]], n_calls: int) -> tuple[list[float], np.ndarray]:
        self.n_calls += n_calls
        return [self.second] * n_calls, self.rows


def time_fakes(**seconds: float) -> dict:
    names = {"int8": "int8", "float32": "float32", "torch": "sentence-transformers", "ort": "onnxruntime-int8"}
    names["ort32"] = "onnxruntime-float32"
    engines = {names[name]: FakeEngine(second, [[1.0, 0.0], [0.0, 2.0]]) for name, second in seconds.items()}
    return encoders.time_case(engines, [[1, 2, 3], [4, 5]], rounds=3, waits=False)


def test_the_ratio_is_that_to_the_faster_of_torch_and_int8():
    case = time_fakes(int8=0.1, float32=0.3, torch=0.4, ort=0.25, ort32=0.15)
    assert case["int8_over_best_peer"] == 2.5
    assert case["tokens_per_s"]["int8"] == 50
    assert case["n_tokens"] == 5


def test_without_peers_there_is_no_ratio():
    assert "int8_over_best_peer" not in time_fakes(int8=0.1, float32=0.3)


def test_a_turn_is_as_many_calls_as_fit_its_time():
    case = time_fakes(int8=0.1, float32=1.0)
    assert case["n_calls"] == {"int8": 12, "float32": 3}


def test_the_row_that_is_farthest_off_is_told():
    engines = {
        "float32": FakeEngine(1.0, [[1.0, 0.0], [0.0, 2.0]]),
        "int8": FakeEngine(1.0, [[3.0, 0.0], [3.0, 4.0]]),
    }
    case = encoders.time_case(engines, [[1], [2]], rounds=1, waits=False)
    assert case["least_cosine"] == {"float32": 1.0, "int8": pytest.approx(0.8)}


def test_a_mixed_batch_has_sequences_from_32_to_256_tokens():
    counts = [len(ids) for ids in encoders.make_batch(encoders.SHAPES["minilm"], "mixed", 200)]
    assert min(counts) >= 32
    assert max(counts) <= 256
    assert len(set(counts)) > 50


def test_ours_give_the_first_hidden_state_of_each_sequence():
    config = encoders.EncoderConfig(1, 16, 32, 2, 40, n_positions=300, n_types=2)
    weights = encoders.random_weights(config)
    batch = encoders.make_batch(config, "mixed", 3)
    exact, int8 = (encoders.open_ours(config, weights, is_int8, 1)(batch, 2) for is_int8 in (False, True))
    assert len(exact[0]) == 2
    assert exact[1].shape == (3, 16)
    assert encoders.least_cosine(exact[1], int8[1]) > 0.99
