"""No body gives a 5xx: any fields with any values, through the real engine."""

import json

import pytest
from direct import DirectServer, ready_service
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted_model import ScriptedModel

from llm_decoder.serving.routes import all_endpoints

ENDPOINTS = [endpoint for endpoint in all_endpoints() if endpoint.method == "POST"]
MESSAGES = [{"role": "user", "content": "a"}]
GOOD = {"prompt": "a", "prompts": ["a"], "messages": MESSAGES, "input": "a", "tokens": [1]}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}

scalars = (
    st.none()
    | st.booleans()
    | st.sampled_from([-1, 0, 1, 2, 20, 21, 4095, 4096, 2**31 - 1, 2**31, -(2**63), 2**64, 10**30])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["\x00", "\ud83d\ude00", "auto", "none", "required", "json_object", "storyteller", "scripted"])
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=6,
)
plausible = st.sampled_from(
    [
        *(MESSAGES, [TOOL], {"include_usage": True}, {"type": "json_object"}, {"regex": "a+"}, {"choice": ["a"]}),
        *(["a", "b"], [1, 2], [[1, 2], [3]], {"1": 1.5}, {"enable_thinking": True}, {"json": {"type": "integer"}}),
        *([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}], 0.5, True, 3, "a"),
    ]
)


@pytest.fixture(scope="module")
def server():
    model = ScriptedModel()
    yield DirectServer(ready_service(model.llm))
    model.llm.close()


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.path)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(data=st.data())
def test_any_fields_with_any_values_are_answered_or_refused(server, endpoint, data):
    names = sorted(endpoint.request.model_fields)
    body = {name: GOOD[name] for name in names if name in GOOD and data.draw(st.integers(0, 9))}
    if "messages" in body and "prompt" in body:
        del body[data.draw(st.sampled_from(["messages", "prompt"]))]
    if "max_tokens" in names:
        body["max_tokens"] = 3
    aliases = [endpoint.request.model_fields[name].alias or name for name in names]
    body |= data.draw(st.dictionaries(st.sampled_from(aliases), plausible | values, max_size=5))
    status, answer, _ = server.post(endpoint.path, json.dumps(body).encode())
    assert status == 200 or 400 <= status < 500, (body, answer)
    if isinstance(answer, list):
        assert not any("error" in event for event in answer), (body, answer)
