"""The command line of ``wgpy dashboard``."""

import argparse
import logging
import shlex
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import NoReturn

from controller.dashboard.gather import Gatherer, PodsToo, Reach
from controller.directory import DirectorySource
from controller.mesh import Mesh
from controller.meshes.calico import Calico
from controller.meshes.cilium import Cilium
from controller.meshes.flannel import Flannel, parse_net_conf
from controller.source import Source
from controller.status_api import DEFAULT_PORT, StatusApiError, read_token

DEFAULT_LISTEN = "127.0.0.1:9591"
MESHES = ("calico", "cilium", "flannel")


class _Parser(argparse.ArgumentParser):
    """argparse, but a mistake is answered with one line instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see: {self.prog} --help)\n")


def main(arguments: list[str]) -> int:
    """show the whole mesh on a web page: who encrypts to whom, how much, and what is wrong"""
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    for name in ("controller.kube", "httpx", "uvicorn"):
        logging.getLogger(name).setLevel(logging.ERROR)  # what fails is said on the page
    try:
        host, port = _listen(options.listen, options.token)
        if (options.certificate is None) != (options.key is None):
            raise StatusApiError("TLS takes both, --certificate FILE and --key FILE")
        reach = Reach.make(options.agents_port, options.agents_token, options.agents_ca, options.tunnel)
        if options.directory is not None and (options.kubeconfig or options.context):
            raise StatusApiError("--directory is a cluster without an API server: leave --kubeconfig and --context out")
        mesh = _mesh(options)
    except StatusApiError as error:
        print(f"wgpy dashboard: {error}", file=sys.stderr)
        return 1
    try:
        from controller.dashboard.server import Address, Tls, serve  # takes a second: not before all is in order
    except ModuleNotFoundError as error:
        pip = f"{shlex.quote(sys.executable)} -m pip"
        print(f"wgpy dashboard: {error.name} is missing: {pip} install 'wgpy[dashboard]'", file=sys.stderr)
        return 1
    tls = Tls(options.certificate, options.key) if options.certificate else None
    return serve(Gatherer(lambda: _source(options, mesh), mesh, reach), Address(host, port, options.token, tls))


def parser() -> argparse.ArgumentParser:
    """The command line, also for who completes or documents it."""
    made = _Parser(prog="wgpy dashboard", description=main.__doc__, allow_abbrev=False)
    cluster = made.add_argument_group("the cluster", "Default: the one whose pod this is, else the one of $KUBECONFIG.")
    cluster.add_argument("--kubeconfig", type=Path, metavar="FILE", help="how to reach the API server, and as whom")
    cluster.add_argument("--context", metavar="NAME", help="which context of the kubeconfig (default: its current one)")
    cluster.add_argument("--directory", type=Path, metavar="DIR", help="no API server, but YAML files in a directory")
    cluster.add_argument("--mesh", choices=MESHES, default="calico", help="whose nodes they are (default: %(default)s)")
    cluster.add_argument("--net-conf", type=Path, metavar="FILE", help="Flannel's net-conf.json (with --mesh flannel)")
    agents = made.add_argument_group("the agents", "Where their status API is (wgpy agent --status-api).")
    agents.add_argument("--agents-token", type=Path, metavar="FILE", required=True, help="their token")
    agents.add_argument("--agents-port", type=int, default=DEFAULT_PORT, metavar="PORT", help="default: %(default)s")
    agents.add_argument(
        "--agents-ca", type=Path, metavar="FILE", help="reach them by TLS: who vouches for their certificate, PEM"
    )
    agents.add_argument(
        "--tunnel",
        metavar="INTERFACE",
        help="reach them through the tunnel, whose interface here this is, such as wireguard.caliu",
    )
    page = made.add_argument_group("the page")
    page.add_argument("--listen", default=DEFAULT_LISTEN, metavar="ADDRESS:PORT", help="default: %(default)s")
    page.add_argument(
        "--token", type=Path, metavar="FILE", help="who reads has to know this; a must unless on a loopback address"
    )
    page.add_argument("--certificate", type=Path, metavar="FILE", help="serve by TLS: the certificate, PEM")
    page.add_argument("--key", type=Path, metavar="FILE", help="serve by TLS: its private key, PEM")
    return made


def _listen(text: str, token: Path | None) -> tuple[str, int]:
    """Where to listen. Raises StatusApiError where that would be open."""
    host, _, port = text.rpartition(":")
    host = host.strip("[]").replace("localhost", "127.0.0.1")
    try:
        is_loopback = ip_address(host).is_loopback
        number = int(port) if port.isascii() else 0
        if not 0 < number < 1 << 16:
            raise ValueError
    except ValueError:
        raise StatusApiError(f"not ADDRESS:PORT, such as {DEFAULT_LISTEN}: {text!r}") from None
    if token is not None:
        read_token(token)
    elif not is_loopback:
        raise StatusApiError(f"on {host} everybody could read it: give --token FILE, or listen on {DEFAULT_LISTEN}")
    return host, number


def _mesh(options: argparse.Namespace) -> Mesh:
    """Raises StatusApiError if what the mesh needs besides is not there."""
    if options.mesh == Calico.name:
        return PodsToo()
    if options.mesh == Cilium.name:
        return Cilium()
    if options.net_conf is None:
        raise StatusApiError("Flannel's networks stand in no object: give its net-conf.json with --net-conf FILE")
    try:
        return Flannel(parse_net_conf(options.net_conf.read_text()))
    except OSError as error:
        raise StatusApiError(f"cannot read {options.net_conf}: {error.strerror}") from None
    except ValueError as error:
        raise StatusApiError(f"{options.net_conf}: {error}") from None


def _source(options: argparse.Namespace, mesh: Mesh) -> Source:
    """Raises SourceError if there is no cluster to read."""
    if options.directory is not None:
        return DirectorySource(options.directory, mesh)
    from controller.kube.source import KubernetesSource

    return KubernetesSource(mesh, options.kubeconfig, options.context)
