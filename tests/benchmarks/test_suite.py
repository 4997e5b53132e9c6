"""What is run on which plane and in what order, what the tools' output means, and one true measurement."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import soak, suite
from benchmarks.lab import LabError
from benchmarks.planes import planes
from benchmarks.results import Report, Row, read
from benchmarks.workloads import Settings, Workload, WorkloadError, read_iperf, read_mean_rtt, read_rtts

SETTINGS = Settings(1.0, "cubic")


def plan(names: str, rows: str = "*", *, rounds: int = 5, chosen: bool = False) -> suite.Plan:
    known = planes()
    return suite.Plan(
        tuple(known[name] for name in names.split(",")), suite.chosen_workloads(rows.split(",")), rounds, SETTINGS, chosen
    )


def runs(plan: suite.Plan, plane: str) -> dict[str, int]:
    """How often each workload is run on the plane."""
    names = [job.workload.name for job in plan.jobs() if job.plane == plane]
    return {name: names.count(name) for name in names}


def test_each_round_begins_with_another_plane() -> None:
    order = [job.plane for job in plan("veth,wireguard-go,wgpy", "tcp-1", rounds=3).jobs()]
    assert order == ["veth", "wireguard-go", "wgpy", "wireguard-go", "wgpy", "veth", "wgpy", "veth", "wireguard-go"]


def test_a_round_finishes_a_row_on_all_planes_before_the_next() -> None:
    jobs = plan("wireguard-go,wgpy", "tcp-1,tcp-8", rounds=1).jobs()
    assert [job.workload.name for job in jobs[:2]] == ["tcp-1", "tcp-1"]


def test_the_main_planes_run_everything_and_the_others_what_compares_them() -> None:
    whole = plan("gotatun,wireguard-go,wgpy-without-offload,wgpy")
    assert runs(whole, "wgpy") == runs(whole, "wireguard-go") == {workload.name: 5 for workload in suite.ALL}
    assert "tcp-8" in runs(whole, "gotatun") and "tcp-mtu-8920" not in runs(whole, "gotatun")
    assert set(runs(whole, "gotatun").values()) == {suite.COMPARED_ROUNDS}
    assert runs(whole, "wgpy-without-offload") == {"tcp-1": 5, "memory": 5}


def test_rows_that_are_named_run_on_every_plane() -> None:
    assert runs(plan("gotatun", "tcp-mtu-8920", chosen=True), "gotatun") == {"tcp-mtu-8920": 5}


def test_handshakes_are_for_wireguards_only() -> None:
    assert runs(plan("veth,openvpn", "handshake*", chosen=True), "veth") == {}
    assert runs(plan("gotatun", "handshake*", chosen=True), "gotatun") == {"handshakes": 5}


def test_rows_are_found_by_the_name_of_any_of_their_figures() -> None:
    assert [workload.name for workload in suite.chosen_workloads(["tcp-1-cpu*", "memory"])] == ["tcp-1", "memory"]


@pytest.mark.parametrize(("options", "said"), [(["--rows", "tcp-9"], "'tcp-9'"), (["--planes", "wgpy,nothing"], "'nothing'")])
def test_unknown_names_are_refused_in_one_line(options: list[str], said: str) -> None:
    arguments = suite.parser().parse_args(options)
    with pytest.raises(suite.UsageError, match=said) as caught:
        suite.plan_of(arguments)
    assert "\n" not in str(caught.value)


def test_names_of_rows_are_unique() -> None:
    names = [row.name for workload in suite.ALL for row in workload.rows]
    assert len(set(names)) == len(names)


# --- Failures ---


class Standing:
    """A tunnel whose data plane dies, or not."""

    def __init__(self, dies: bool = False) -> None:
        self.dies = dies
        self.ran = False

    def check(self) -> None:
        if self.dies and self.ran:
            raise LabError("it ended with status 1")


def workload(error: Exception | None) -> Workload:
    row = Row("row", "row", "group", "Gb/s", "higher")

    def run(tunnel: Standing, _: Settings) -> dict[Row, float]:
        tunnel.ran = True
        if error is not None:
            raise error
        return {row: 1.5}

    return Workload("row", (row,), run)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "tunnel", "reason"),
    [
        (WorkloadError("no answer"), Standing(), "round 3: no answer"),
        (WorkloadError("no answer"), Standing(dies=True), "round 3: it ended with status 1"),
        (None, Standing(dies=True), "round 3: it ended with status 1"),
        (None, "it could not be laid", "it could not be laid"),
    ],
)
def test_a_failure_is_recorded_where_its_value_would_be(error: Exception | None, tunnel: object, reason: str) -> None:
    report = Report()
    said = suite.do(suite.Job(2, workload(error), "wgpy"), tunnel, SETTINGS, report)  # type: ignore[arg-type]
    found = report.find("row", "wgpy")
    assert found is not None and found.values == [] and len(found.failures) == 1
    assert reason in found.failures[0]
    assert said.startswith("failed: ")


def test_a_value_is_recorded_and_told() -> None:
    report = Report()
    said = suite.do(suite.Job(0, workload(None), "wgpy"), Standing(), SETTINGS, report)  # type: ignore[arg-type]
    found = report.find("row", "wgpy")
    assert found is not None and found.values == [1.5] and not found.failures
    assert said == "1.50 Gb/s"


# --- What the tools say ---


def iperf_says(received: int, seconds: float, **sent: float) -> str:
    return json.dumps({"end": {"sum_sent": sent, "sum_received": {"bytes": received, "seconds": seconds}}})


def test_delivered_is_what_the_receiver_got_over_its_own_time() -> None:
    transfer = read_iperf(iperf_says(2_000_000_000, 4.0, bytes=3e9, packets=7, retransmits=5))
    assert (transfer.bits_per_second, transfer.gigabytes, transfer.sent_packets, transfer.retransmits) == (4e9, 2.0, 7, 5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"start": {}, "error": "unable to connect to server"}', "unable to connect"),
        (iperf_says(0, 1.0), "nothing was received"),
        ("", "no answer"),
        ("iperf3: not found", "not found"),
    ],
)
def test_an_error_of_iperf_is_told_and_no_value(text: str, said: str) -> None:
    with pytest.raises(WorkloadError, match=said):
        read_iperf(text)


def test_ping_tells_microseconds() -> None:
    assert read_rtts("64 bytes from x: time=0.250 ms\n64 bytes from x: time=1.5 ms\n") == [250.0, 1500.0]
    assert read_mean_rtt("rtt min/avg/max/mdev = 0.1/0.2/0.3/0.04 ms, ipg/ewma 0/0 ms") == 200.0


@pytest.mark.parametrize("reader", [read_rtts, read_mean_rtt])
def test_ping_without_an_answer_is_no_value(reader: object) -> None:
    with pytest.raises(WorkloadError, match="no answer"):
        reader("5 packets transmitted, 0 received")  # type: ignore[operator]


def test_counters_of_drops_are_read_by_name() -> None:
    snmp = "Tcp: A\nTcp: 1\nUdp: InDatagrams InErrors RcvbufErrors SndbufErrors\nUdp: 9 3 2 1\nUdpLite: A\nUdpLite: 1\n"
    assert soak.udp_errors(snmp, "n0") == {"n0 UDP RcvbufErrors": 2, "n0 UDP SndbufErrors": 1}
    link = [{"ifname": "wg0", "stats64": {"rx": {"errors": 0, "dropped": 2}, "tx": {"errors": 0, "dropped": 5}}}]
    assert +soak.link_drops(json.dumps(link), "n0") == {"n0 wg0 rx dropped": 2, "n0 wg0 tx dropped": 5}
    metrics = '# TYPE wgpy_drops_total counter\nwgpy_drops_total{interface="wg0",reason="bad_tag"} 4.0\n'
    assert soak.wgpy_drops(metrics, "n0") == {"n0 wgpy bad_tag": 4}


def test_the_machine_is_looked_at() -> None:
    quiet = suite.look_at_machine(0.05)
    assert 0.0 <= quiet.idle <= 1.0 and quiet.busy == (quiet.idle < suite.IDLE_ENOUGH)


# --- The real thing ---


@pytest.mark.e2e
@pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and interfaces need root")
def test_one_row_of_wgpy_is_measured_and_written(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    options = ["--planes", "wgpy", "--rows", "tcp-1,memory", "--rounds", "1", "--seconds", "1", "--json", str(path)]
    done = subprocess.run([sys.executable, "-m", "benchmarks", *options], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = read(path)
    speed, cpu, memory = (report.find(row, "wgpy") for row in ("tcp-1", "tcp-1-cpu", "memory"))
    assert speed is not None and len(speed.values) == 1 and speed.values[0] > 0.01
    assert cpu is not None and cpu.values[0] > 0
    assert memory is not None and 10 < memory.values[0] < 1000
    assert len(report.rounds) == 1 and report.options["rounds"] == 1


@pytest.mark.e2e
@pytest.mark.parametrize("arguments", [["--quick"], ["seam"]], ids=" ".join)
def test_without_the_capability_it_is_one_line_and_a_status(arguments: list[str]) -> None:
    without = ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"]
    done = subprocess.run(
        [*without, sys.executable, "-m", "benchmarks", *arguments], capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode == 2
    assert "root with CAP_NET_ADMIN is needed" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
