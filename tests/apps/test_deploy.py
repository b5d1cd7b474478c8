"""What examples/deploy tells other programs to run is what the command line knows."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from cli_fakes import Program

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "examples" / "deploy"
UNIT = (DEPLOY / "llm_decoder.service").read_text()
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def of_unit(name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", UNIT, re.M)


def in_container() -> list[str]:
    (entry,) = re.findall(r"^ENTRYPOINT (\[.*\])$", DOCKERFILE, re.M)
    return json.loads(entry) + COMPOSE["services"]["llm_decoder"]["command"]


@pytest.mark.parametrize("command", [shlex.split(of_unit("ExecStart")[0]), in_container()], ids=["unit", "container"])
def test_the_servers_flags_are_known(cli: Program, command: list[str]) -> None:
    assert (Path(command[0]).name, command[1]) == ("llm-decoder", "serve")
    known = cli("serve", "--help").out
    for flag in (part for part in command if part.startswith("--")):
        assert re.search(rf"{flag}\b", known), flag
    assert "--api-key-file" in command


def test_variables_are_documented() -> None:
    documented = (ROOT / "docs" / "environment.md").read_text()
    service = COMPOSE["services"]["llm_decoder"]
    named = {*re.findall(r"LLM_DECODER_[A-Z_]+", UNIT + DOCKERFILE), *service["environment"]} - {"LLM_DECODER_"}
    assert {name for name in named if f"`{name}`" not in documented} == set()


def test_who_stops_it_waits_longer_than_it_drains() -> None:
    (drain_s,) = re.findall(r"--drain-s (\d+)", UNIT)
    assert int(of_unit("TimeoutStopSec")[0]) > int(drain_s)
    assert COMPOSE["services"]["llm_decoder"]["stop_grace_period"] == "45s"


def test_what_is_named_is_there() -> None:
    build = COMPOSE["services"]["llm_decoder"]["build"]
    assert (DEPLOY / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).is_file()
    used = {secret for service in COMPOSE["services"].values() for secret in service.get("secrets", ())}
    assert used == COMPOSE["secrets"].keys()
    assert all(secret in DOCKERFILE + str(COMPOSE["configs"]) for secret in used)


def test_the_container_is_said_to_be_unbuilt() -> None:
    assert "not built where this project is tested" in DOCKERFILE
    assert "not built or run where this project is tested" in " ".join((DEPLOY / "README.md").read_text().split())
