"""The status API: what it says, to whom, and where it refuses to listen."""

import asyncio
import json
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from controller.entries import Kind, entry
from controller.history import History
from controller.status import AgentStatus, from_json
from controller.status_api import MOST_CONNECTIONS, SERVER_NAME, StatusApi, StatusApiError, place
from tests.controller.lab import Lab, make_lab, may_make_namespaces
from tests.controller.test_summary import NOW, STATUS

TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    return path


@asynccontextmanager
async def served(
    token: Path, status: AgentStatus | None = STATUS, address: str = "127.0.0.1:0", **tls: Path
) -> AsyncIterator[str]:
    """The API on a loopback address; the URL it is at."""

    async def current() -> AgentStatus | None:
        return status

    api = StatusApi(place(address, token, tls.get("certificate"), tls.get("key")), current, token.parent)
    await api.start()
    assert api.address is not None
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{api.address[1]}"
    finally:
        await api.stop()


async def ask(url: str, token: str | None = TOKEN, tls: ssl.SSLContext | None = None, method: str = "GET") -> tuple[int, str]:
    headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
    async with aiohttp.ClientSession() as session:
        name = SERVER_NAME if tls else None
        async with session.request(method, url, headers=headers, ssl=tls or True, server_hostname=name) as answer:
            return answer.status, await answer.text()


# What it says


async def test_the_whole_status_can_be_read_back(token: Path) -> None:
    async with served(token) as url:
        code, text = await ask(f"{url}/v1/status")

    assert code == 200 and from_json(text) == STATUS


async def test_the_history_comes_newest_first_and_not_all_of_it(token: Path) -> None:
    History(token.parent).write([entry(NOW + number, Kind.PEER_ADDED, peer=f"n{number}") for number in range(80)])
    async with served(token) as url:
        _, text = await ask(f"{url}/v1/history?limit=3")
        _, usual = await ask(f"{url}/v1/history")
        refusals = [(await ask(f"{url}/v1/history?limit={limit}"))[0] for limit in ("0", "1001", "-1", "x", "²", "9" * 5000)]

    assert [one["peer"] for one in json.loads(text)] == ["n79", "n78", "n77"]
    assert len(json.loads(usual)) == 50 and refusals == [400] * 6


async def test_before_the_first_pass_there_is_nothing_to_say(token: Path) -> None:
    async with served(token, status=None) as url:
        assert (await ask(f"{url}/v1/summary"))[0] == 503


# To whom


@pytest.mark.parametrize("given", [None, "", "wrong", TOKEN[:-1], f"{TOKEN}0", "\xff" * 32], ids=repr)
@pytest.mark.parametrize("path", ["/v1/summary", "/v1/status", "/v1/history", "/", "/nowhere"])
async def test_who_does_not_know_the_token_learns_nothing(token: Path, path: str, given: str | None) -> None:
    async with served(token) as url:
        code, text = await ask(f"{url}{path}", given)

    assert code == 401 and "n1" not in text


async def test_a_token_that_is_rotated_counts_at_once(token: Path) -> None:
    async with served(token) as url:
        token.write_text("another token that is long enough")
        assert (await ask(f"{url}/v1/summary"))[0] == 401
        assert (await ask(f"{url}/v1/summary", "another token that is long enough"))[0] == 200
        token.unlink()
        code, text = await ask(f"{url}/v1/summary", "another token that is long enough")
        assert code == 503 and str(token) not in text


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_it_can_only_be_read(token: Path, method: str) -> None:
    async with served(token) as url:
        assert (await ask(f"{url}/v1/summary", method=method))[0] == 405


# Where


@pytest.mark.parametrize(
    ("address", "with_token", "word"),
    [
        ("127.0.0.1:9590", False, "--status-token"),
        ("tunnel:9590", False, "--status-token"),
        ("192.0.2.7:9590", True, "in clear"),
        ("0.0.0.0:9590", True, "in clear"),
        ("[::]:9590", True, "in clear"),
        ("node-1:9590", True, "not an address"),
        ("127.0.0.1:", True, "not ADDRESS:PORT"),
        ("127.0.0.1:70000", True, "not ADDRESS:PORT"),
        ("9590", True, "not an address"),
    ],
)
def test_it_does_not_listen_where_it_would_be_open(token: Path, address: str, with_token: bool, word: str) -> None:
    with pytest.raises(StatusApiError, match=word):
        place(address, token if with_token else None, None, None)


def test_a_short_token_is_none(token: Path) -> None:
    token.write_text("short\n")

    with pytest.raises(StatusApiError, match="shorter than 16"):
        place("127.0.0.1:9590", token, None, None)


def test_half_of_what_tls_takes_is_refused(token: Path) -> None:
    with pytest.raises(StatusApiError, match="takes both"):
        place("192.0.2.7:9590", token, token, None)


async def test_an_address_that_is_taken_is_named(token: Path) -> None:
    async with served(token) as url:
        with pytest.raises(StatusApiError, match=r"127\.0\.0\.1:.*in use"):
            async with served(token, address=url.removeprefix("http://")):
                pass


def make_certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate of its own authority, made out to SERVER_NAME, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(SERVER_NAME)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = folder / f"{name}.pem", folder / f"{name}.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths


async def test_over_tls_and_a_new_certificate_counts_without_a_restart(token: Path, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, "old")
    trusts_old = ssl.create_default_context(cafile=certificate)
    new_certificate, new_key = make_certificate(tmp_path, "new")
    trusts_new = ssl.create_default_context(cafile=new_certificate)
    async with served(token, certificate=certificate, key=key) as url:
        assert (await ask(f"{url}/v1/summary", tls=trusts_old))[0] == 200
        with pytest.raises(aiohttp.ClientConnectorError):
            await ask(f"{url}/v1/summary", tls=trusts_new)

        shutil.copy(new_key, key)
        shutil.copy(new_certificate, certificate)

        async def is_new() -> bool:
            try:
                return (await ask(f"{url}/v1/summary", tls=trusts_new))[0] == 200
            except aiohttp.ClientConnectorError:
                return False

        await until(is_new)


def test_a_certificate_that_is_none_is_named(token: Path) -> None:
    async def serve() -> None:
        async with served(token, certificate=token, key=token):
            pass

    with pytest.raises(StatusApiError, match="cannot serve"):
        asyncio.run(serve())


@pytest.mark.parametrize("with_tls", [False, True])
async def test_strangers_do_not_take_the_agents_descriptors(token: Path, tmp_path: Path, with_tls: bool) -> None:
    """They need no token to be let in. Who asks with one is answered all the same."""
    certificate, key = make_certificate(tmp_path, "own")
    tls = ssl.create_default_context(cafile=certificate) if with_tls else None
    async with served(token, certificate=certificate, key=key) if with_tls else served(token) as url:
        before = len(os.listdir("/proc/self/fd"))
        port = int(url.rpartition(":")[2])
        strangers = [await asyncio.open_connection("127.0.0.1", port) for _ in range(MOST_CONNECTIONS + 40)]

        assert (await ask(f"{url}/v1/summary", tls=tls))[0] == 200

        async def has_room() -> bool:
            return len(os.listdir("/proc/self/fd")) - before <= len(strangers) + MOST_CONNECTIONS

        await until(has_room)
        for _, writer in strangers:
            writer.transport.abort()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await condition():
            await asyncio.sleep(0.1)


# Real agents


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    if not may_make_namespaces():
        pytest.skip("needs root, to make network namespaces")
    with make_lab(tmp_path, []) as made:
        yield made


ASK = """
import sys, urllib.request
request = urllib.request.Request(sys.argv[1], headers={"Authorization": "Bearer " + sys.argv[2]})
print(urllib.request.urlopen(request, timeout=2).read().decode())
"""


def heard(lab: Lab, number: int, url: str) -> str | None:
    """Which node answers there, asked by node ``number``; None if nobody does."""
    words = lab.nodes[number].command(sys.executable, "-c", ASK, f"{url}/v1/summary", TOKEN)
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return str(json.loads(done.stdout)["node"]) if done.returncode == 0 else None


@pytest.mark.e2e
@pytest.mark.slow
def test_in_the_tunnel_only_who_comes_by_it_is_heard(lab: Lab, token: Path) -> None:
    lab.felix()
    for number in (1, 2):
        lab.add_node(number)
    for number in (1, 2):
        lab.nodes[number].start_agent("--status-api", "tunnel:9590", "--status-token", str(token))
    lab.until_settled(1, 2)
    manifest = lab.node_manifest("n1")
    inside = manifest["metadata"]["annotations"]["projectcalico.org/IPv4WireguardInterfaceAddr"]

    url = f"http://{inside}:9590"
    lab.until(lambda: heard(lab, 2, url) == "n1", "n1 is heard in the tunnel")
    lab.until(lambda: heard(lab, 1, url) == "n1", "it is heard by this host itself")
    # By the underlay: neither at the node's address, nor at that of the tunnel by a route past the tunnel.
    assert heard(lab, 2, "http://192.0.2.1:9590") is None
    past = lab.nodes[2]
    past.run("ip", "rule", "add", "pref", "5", "to", inside, "lookup", "77")
    past.run("ip", "route", "add", inside, "via", "192.0.2.1", "table", "77")
    assert heard(lab, 2, url) is None
    past.run("ip", "rule", "del", "pref", "5")
    lab.until(lambda: heard(lab, 2, url) == "n1", "n1 is heard in the tunnel again")


@pytest.mark.e2e
@pytest.mark.slow
def test_an_agent_refuses_to_start_with_an_open_api(lab: Lab, token: Path) -> None:
    lab.felix()
    lab.add_node(1)

    done = lab.nodes[1].run_agent("--status-api", "192.0.2.1:9590", "--status-token", str(token))

    assert done.returncode == 1 and "in clear" in done.stderr and TOKEN not in done.stderr
