"""The whole demo, for real. Slow: a good half minute."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from controller.demo.command import missing
from controller.demo.topology import NAMESPACES, RUNS

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.skipif(missing() is not None, reason=str(missing()))]

NODES = ("n1", "n2", "n3")  # those with a data plane
DEMO = [sys.executable, "-c", "import sys; from controller.demo import main; sys.exit(main(sys.argv[1:]))"]


def test_all_five_steps_hold_and_nothing_is_left() -> None:
    result = subprocess.run([*DEMO, "-o", "json"], capture_output=True, text=True, timeout=180, check=False)

    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["held"] and all(promise["held"] for promise in document["promises"])
    assert {promise["step"][0] for promise in document["promises"]} == set("12345")
    verdicts = {(pair["from"], pair["to"], pair["ip"]): pair["seen"] for pair in document["pairs"]}
    assert verdicts["n1-a", "n2-a", 4] == verdicts["n1-a", "n3-a", 4] == "encrypted"
    assert verdicts["n1-a", "n4-a", 4] == "in clear"
    assert verdicts["n1-a", "n1-b", 4] == "nothing"
    assert all(measured["bits_per_second"] > 1e6 for measured in document["throughput"])
    assert {(peer["node"], peer["peer"]) for peer in document["mesh"]} == {(a, b) for a in NODES for b in NODES if a != b}
    assert all(peer["last_handshake"] and peer["received_bytes"] > 0 for peer in document["mesh"])
    assert {pod for peer in document["mesh"] if peer["peer"] == "n3" for pod in peer["pods"]} == {"n3-a", "n3-b", "wanderer"}
    assert "\x1b" not in result.stderr
    assert not list(NAMESPACES.glob(f"wgpy-{document['run']}-*")) and not (RUNS / document["run"]).exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("step", ["A cluster of", "1  Pods"])
def test_an_interrupted_demo_cleans_up_at_once(step: str, number: signal.Signals) -> None:
    demo = subprocess.Popen(
        DEMO, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )
    assert demo.stdout is not None
    run = None
    for line in demo.stdout:
        if found := re.search(r"\(run (\w+)\)", line):
            run = found[1]
        if step in line:
            break
    time.sleep(0.3)

    interrupted = time.monotonic()
    demo.send_signal(number)
    output, _ = demo.communicate(timeout=30)

    assert demo.returncode == 128 + number, output
    assert time.monotonic() - interrupted < 10, "the rest of it takes longer"
    assert run and not list(NAMESPACES.glob(f"wgpy-{run}-*")) and not (RUNS / run).exists()
    assert "Traceback" not in output and f"interrupted by {number.name}" in output
