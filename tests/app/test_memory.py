"""A thousand calls through the queue of a running server leave its memory as it was."""

import json
import os
import sys
from pathlib import Path

import httpx
import pytest
from support.page_server import Server

CALLS, WARM_UP, VISITORS = 1000, 200, 10
MOST_GROWTH = 30_000_000  # bytes; one figure of a demo that stayed for each call would be more


def resident(process: int) -> int:
    """The bytes of a process in memory."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def call(client: httpx.Client, function: int, values: list[object], session: str) -> str:
    """What a function of the page returns, as a browser asks for it."""
    body = {"fn_index": function, "data": values, "session_hash": session}
    client.post("/gradio_api/queue/join", json=body).raise_for_status()
    with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as lines:
        for line in lines.iter_lines():
            message = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
            if message.get("msg") == "process_completed":
                assert message["success"], message
                return str(message["output"]["data"][0])
    raise AssertionError("the server ended the stream")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of a process from /proc")
def test_memory_does_not_grow(server: Server) -> None:
    with httpx.Client(base_url=server.address, timeout=120, trust_env=False) as client:
        config = client.get("/config").json()
        labels = {each["id"]: each["props"].get("label") for each in config["components"]}
        runs = [each for each in config["dependencies"] if each["targets"] and each["outputs"] and each["inputs"]]
        prompts = [each["id"] for each in runs if [labels[k] for k in each["inputs"]] == ["Prompt for all tabs"]]
        tokenizer = prompts[0]
        for k in range(CALLS):
            if k == WARM_UP:
                before = resident(server.process)
            assert "Tokenizer" in call(client, tokenizer, [f"a red circle {k}"], f"session{k % VISITORS}")
        growth = resident(server.process) - before
    print(f"memory grew by {growth:,} bytes in {CALLS - WARM_UP} calls")
    assert growth < MOST_GROWTH
