"""The command line of ``wgpy dashboard``: what is refused, and what it comes to."""

import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from controller.dashboard import server
from controller.dashboard.command import MESHES, main, parser
from controller.dashboard.gather import Gatherer, PodsToo
from controller.dashboard.server import Address
from controller.meshes.flannel import Flannel

TOKEN = "a token that is long enough"


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(TOKEN)
    return path


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What would have been served."""
    found: list[Any] = []

    def serve(gatherer: Gatherer, address: Address) -> int:
        found.extend((gatherer, address))
        return 0

    monkeypatch.setattr(server, "serve", serve)
    return found


def test_by_default_it_is_for_this_machine(token: Path, served: list[Any]) -> None:
    assert main(["--agents-token", str(token)]) == 0

    assert served[1] == Address("127.0.0.1", 9591) and served[1].url == "http://127.0.0.1:9591"


@pytest.mark.parametrize(
    ("words", "url"),
    [
        (["--listen", "localhost:80"], "http://127.0.0.1:80"),
        (["--listen", "[::1]:9591"], "http://[::1]:9591"),
        (["--listen", "0.0.0.0:9591", "--token", "{token}"], "http://0.0.0.0:9591"),
        (["--listen", "192.0.2.7:1", "--token", "{token}", "--certificate", "c", "--key", "k"], "https://192.0.2.7:1"),
    ],
)
def test_where_it_is_served(token: Path, served: list[Any], words: list[str], url: str) -> None:
    assert main(["--agents-token", str(token), *(word.format(token=token) for word in words)]) == 0

    assert served[1].url == url


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--listen", "0.0.0.0:9591"], "on 0.0.0.0 everybody could read it"),
        (["--listen", "192.0.2.7:9591"], "everybody could read it"),
        (["--listen", "[::]:9591"], "everybody could read it"),
        (["--listen", "127.0.0.1"], "not ADDRESS:PORT"),
        (["--listen", "node-1:80"], "not ADDRESS:PORT"),
        (["--listen", "127.0.0.1:0"], "not ADDRESS:PORT"),
        (["--listen", "127.0.0.1:٣"], "not ADDRESS:PORT"),
        (["--token", "/nowhere"], "cannot read the token in /nowhere"),
        (["--certificate", "c"], "TLS takes both"),
        (["--agents-ca", "/nowhere"], "cannot read certificates from /nowhere"),
        (["--directory", "d", "--context", "c"], "without an API server"),
        (["--mesh", "flannel"], "--net-conf"),
        (["--mesh", "flannel", "--net-conf", "/nowhere"], "cannot read /nowhere"),
    ],
)
def test_what_is_refused_is_said_in_one_line(
    token: Path, served: list[Any], capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(["--agents-token", str(token), *words]) == 1

    error = capsys.readouterr().err
    assert error.startswith("wgpy dashboard: ") and error.count("\n") == 1 and said in error and not served


def test_the_agents_token_is_a_must(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([])

    assert ended.value.code == 2 and "--agents-token" in capsys.readouterr().err


def test_without_its_extra_it_names_it(token: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nicegui", None)
    monkeypatch.delitem(sys.modules, "controller.dashboard.server")
    monkeypatch.delitem(sys.modules, "controller.dashboard.page", raising=False)

    assert main(["--agents-token", str(token)]) == 1

    pip = f"{shlex.quote(sys.executable)} -m pip"
    assert capsys.readouterr().err == f"wgpy dashboard: nicegui is missing: {pip} install 'wgpy[dashboard]'\n"


def test_every_mesh_can_be_shown(token: Path, served: list[Any], tmp_path: Path) -> None:
    net_conf = tmp_path / "net-conf.json"
    net_conf.write_text('{"Network": "10.244.0.0/16", "Backend": {"Type": "wireguard"}}')
    for mesh in MESHES:
        assert main(["--agents-token", str(token), "--mesh", mesh, "--net-conf", str(net_conf)]) == 0

    assert [gatherer.mesh_name for gatherer in served[::2]] == list(MESHES)
    assert PodsToo.name == "calico" and Flannel.name == "flannel"


def test_no_secret_stands_on_the_command_line() -> None:
    """What takes a token takes the file it is in."""
    for action in parser()._actions:
        assert "token" not in action.dest or action.type is Path
