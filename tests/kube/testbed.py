"""A real Kubernetes API for tests: etcd and kube-apiserver as processes of this machine, and kubectl.

`.ci/setup-kube` builds the three as one program. What runs is the unmodified API server with its admission, RBAC, validation and
watch cache; what does not run is everything that acts on objects: no kubelet, no controllers, no scheduler. So nothing is garbage
collected, and a Node carries the taint it was born with.

Requests to the API server go through :meth:`Testbed.request`, as the administrator, over kept connections: a thousand Nodes in
about a second. It is deliberately plain (the standard library), so that an error in the client under test is not mirrored here.
"""

import contextlib
import http.client
import ipaddress
import itertools
import json
import os
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

ROOT = Path(__file__).parents[2]
PROGRAMS = ROOT / ".cache" / "kube"
CRDS = Path(__file__).parent / "crds"

CALICO_GROUPS = ("crd.projectcalico.org/v1", "projectcalico.org/v3")
MERGE_PATCH = "application/merge-patch+json"

READY_SECONDS = 60.0
START_ATTEMPTS = 5
BATCH = 20
"""So many objects are worth several connections."""

API_SERVER, ETCD = "kube-apiserver", "etcd"

Manifest = Mapping[str, Any]


class ApiError(Exception):
    """The API server said no. ``status`` is HTTP's, the text is the server's own message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class StartError(Exception):
    """A process ended before it was ready, or never became so; with the end of its log."""


def is_built() -> bool:
    """Whether `.ci/setup-kube` has been run."""
    return all((PROGRAMS / name).exists() for name in (API_SERVER, ETCD, "kubectl"))


@dataclass
class Testbed:
    """One etcd, one API server. Made by :meth:`start`; a context manager that ends both."""

    path: Path
    addresses: tuple[str, ...]
    apiserver_args: tuple[str, ...]
    etcd_args: tuple[str, ...]
    port: int = 0
    etcd_port: int = 0
    admin_token: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)
    _processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    _idle: list[http.client.HTTPSConnection] = field(default_factory=list, repr=False)
    _resources: dict[tuple[str, str], tuple[str, bool]] = field(default_factory=dict, repr=False)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1), repr=False)

    __test__ = False  # pytest: not a test, in spite of its name

    # Life

    @classmethod
    def start(
        cls, path: Path, addresses: Sequence[str] = (), apiserver_args: Sequence[str] = (), etcd_args: Sequence[str] = ()
    ) -> Self:
        """Start both in ``path`` and return when they answer (three seconds). Raises StartError.

        ``addresses`` are more addresses at which the API server is to be reached (of a veth into a namespace): it then listens
        on all, and its certificate names them. They need not exist yet.
        """
        path.mkdir(parents=True, exist_ok=True)
        testbed = cls(path, tuple(addresses), tuple(apiserver_args), tuple(etcd_args))
        make_pki(path, ["127.0.0.1", *addresses])
        (path / "tokens.csv").write_text(f'{testbed.admin_token},admin,admin,"system:masters"\n')
        try:
            for attempt in range(START_ATTEMPTS):
                testbed.port, testbed.etcd_port, peer_port = free_ports(3)
                try:
                    testbed._start_etcd(peer_port)
                    testbed._start_apiserver()
                    break
                except StartError as error:
                    # A port that was free a moment ago may be somebody's by now.
                    if "address already in use" not in str(error) or attempt + 1 == START_ATTEMPTS:
                        raise
                    testbed.close()
            testbed.kubeconfig.write_text(testbed._kubeconfig_text(testbed.url, "token", testbed.admin_token))
        except BaseException:
            testbed.close()
            raise
        return testbed

    def close(self) -> None:
        """End both, and remove the database."""
        for name in (API_SERVER, ETCD):
            if name in self._processes:
                self.kill(name)
        while self._idle:
            self._idle.pop().close()
        shutil.rmtree(self.path / "etcd", ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def stop(self, name: str) -> None:
        """SIGSTOP: the process is there and connections are accepted, but nothing answers. ``name``: kube-apiserver or etcd."""
        self._processes[name].send_signal(signal.SIGSTOP)

    def go_on(self, name: str) -> None:
        """SIGCONT."""
        self._processes[name].send_signal(signal.SIGCONT)

    def kill(self, name: str) -> None:
        """SIGKILL: connections break, and new ones are refused."""
        process = self._processes.pop(name)
        process.kill()
        process.wait()

    def restart_apiserver(self, *more_args: str) -> None:
        """Kill it if it is alive, and start it again at the same port, with ``more_args`` from now on. Ready on return.

        Its watch cache is empty then: versions from before a :meth:`compact` are gone (410).
        """
        self.apiserver_args += more_args
        if API_SERVER in self._processes:
            self.kill(API_SERVER)
        self._start_apiserver()

    def compact(self) -> None:
        """Have etcd forget all versions of objects but the newest."""
        revision = int(self._etcd("maintenance/status", {})["header"]["revision"])
        self._etcd("kv/compaction", {"revision": revision, "physical": True})

    def usage(self, name: str) -> tuple[float, float]:
        """CPU seconds and resident megabytes of a process."""
        return usage(self._processes[name].pid)

    # Where it is

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def url_at(self, address: str) -> str:
        """Its URL at one of ``addresses``."""
        return f"https://{f'[{address}]' if ':' in address else address}:{self.port}"

    @property
    def ca(self) -> Path:
        """The certificate of its authority, as PEM."""
        return self.path / "pki" / "ca.crt"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's."""
        return self.path / "kubeconfig"

    def kubeconfig_for(self, token: str, url: str | None = None) -> Path:
        """A kubeconfig for a token, which stands in a file of its own (:meth:`token_file`): write another there to rotate it."""
        path = self.path / f"kubeconfig-{next(self._numbers)}"
        token_file = self.token_file(path)
        token_file.touch(0o600)
        token_file.write_text(token)
        path.write_text(self._kubeconfig_text(url or self.url, "tokenFile", str(token_file)))
        return path

    @staticmethod
    def token_file(kubeconfig: Path) -> Path:
        """Where a kubeconfig of :meth:`kubeconfig_for` has its token."""
        return kubeconfig.with_name(f"{kubeconfig.name}.token")

    # Speaking to it

    def kubectl(self, *words: str, stdin: str | None = None, kubeconfig: Path | None = None, check: bool = True) -> str:
        """Run kubectl and return what it printed. If it fails: AssertionError with what it said, or without ``check`` that."""
        result = subprocess.run(
            [PROGRAMS / "kubectl", f"--cache-dir={self.path / 'kubectl-cache'}", *words],
            input=stdin,
            capture_output=True,
            text=True,
            env={"PATH": os.environ["PATH"], "HOME": str(self.path), "KUBECONFIG": str(kubeconfig or self.kubeconfig)},
            timeout=120,
        )
        if result.returncode:
            assert not check, f"kubectl {' '.join(words)}: {result.stderr}"
            return result.stdout + result.stderr
        return result.stdout

    def request(
        self, method: str, path: str, body: object = None, content_type: str = "application/json", token: str | None = None
    ) -> Any:
        """One request (``/api/v1/nodes``) as the administrator, or with ``token``; its JSON. Raises ApiError, OSError."""
        headers = {"Authorization": f"Bearer {token or self.admin_token}", "Content-Type": content_type}
        data = None if body is None else json.dumps(body)
        while True:
            try:
                connection, is_new = self._idle.pop(), False
            except IndexError:
                connection, is_new = self._connect(), True
            try:
                connection.request(method, path, data, headers)
                response = connection.getresponse()
                text = response.read()
                self._idle.append(connection)
                break
            except (OSError, http.client.HTTPException):
                connection.close()
                # What was kept may have been closed meanwhile; what is new has no excuse.
                if is_new:
                    raise
        answer = json.loads(text) if text[:1] == b"{" else text.decode(errors="replace")
        if response.status >= 400:
            raise ApiError(response.status, answer["message"] if isinstance(answer, dict) else answer.strip())
        return answer

    def apply(self, *manifests: Manifest) -> None:
        """Create objects, or merge them into those that are there (Nodes with their status). CRDs are served on return."""
        if len(manifests) < BATCH:
            for manifest in manifests:
                self._apply(manifest)
            return
        for version, kind in {(manifest["apiVersion"], manifest["kind"]) for manifest in manifests}:
            self._resource(version, kind)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(self._apply, manifests))

    def apply_file(self, path: Path) -> None:
        """Apply all documents of a YAML file."""
        self.apply(*(document for document in yaml.safe_load_all(path.read_text()) if document))

    def get(self, kind: str, name: str, version: str = "v1", namespace: str | None = None) -> Any:
        """An object. Raises ApiError."""
        return self.request("GET", f"{self._collection(version, kind, namespace)}/{name}")

    def patch(
        self, kind: str, name: str, body: Manifest, version: str = "v1", namespace: str | None = None, subresource: str = ""
    ) -> Any:
        """A JSON merge patch; with ``subresource="/status"`` of that. Raises ApiError."""
        return self.request("PATCH", f"{self._collection(version, kind, namespace)}/{name}{subresource}", body, MERGE_PATCH)

    def delete(self, kind: str, name: str, version: str = "v1", namespace: str | None = None) -> None:
        """Remove an object, if it is there, without grace."""
        with contextlib.suppress(ApiError):
            path = f"{self._collection(version, kind, namespace)}/{name}"
            self.request("DELETE", path, {"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0})

    def token(self, service_account: str, namespace: str = "kube-system", node: str | None = None) -> str:
        """A token of a ServiceAccount, which is made if it is not there; with ``node``, bound to a Pod on that Node, as a kubelet
        would ask for it: the API server then knows the Node's name. The Node has to be there."""
        self._make_sure(f"/api/v1/namespaces/{namespace}/serviceaccounts", {"metadata": {"name": service_account}})
        spec: dict[str, Any] = {"expirationSeconds": 3600}
        if node is not None:
            pod = self._pod(service_account, namespace, node)
            spec["boundObjectRef"] = {
                "apiVersion": "v1",
                "kind": "Pod",
                "name": pod["metadata"]["name"],
                "uid": pod["metadata"]["uid"],
            }
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        answer = self.request("POST", f"/api/v1/namespaces/{namespace}/serviceaccounts/{service_account}/token", request)
        return str(answer["status"]["token"])

    def install_calico_crds(self, *groups: str) -> None:
        """Calico's kinds, served on return: of one group or of several (``projectcalico.org/v3``). By default the classic one."""
        for group in groups or CALICO_GROUPS[:1]:
            for path in sorted(CRDS.glob("calico-*.yaml")):
                self.apply(in_group(yaml.safe_load(path.read_text()), group))

    def remove_calico_crds(self, *groups: str) -> None:
        """The opposite: the kinds and all their objects are gone on return."""
        for group in groups or CALICO_GROUPS[:1]:
            for path in sorted(CRDS.glob("calico-*.yaml")):
                crd = in_group(yaml.safe_load(path.read_text()), group)
                self.delete("CustomResourceDefinition", crd["metadata"]["name"], "apiextensions.k8s.io/v1")
                self._resources.pop((group, crd["spec"]["names"]["kind"]), None)
                until(lambda crd=crd: not self._is_served(crd), f"{crd['metadata']['name']} to be gone")

    # Inside

    def _apply(self, manifest: Manifest) -> None:
        version, kind, metadata = manifest["apiVersion"], manifest["kind"], manifest["metadata"]
        collection = self._collection(version, kind, metadata.get("namespace"))
        try:
            self.request("POST", collection, manifest)
        except ApiError as error:
            if error.status != 409:
                raise
            self.request("PATCH", f"{collection}/{metadata['name']}", manifest, MERGE_PATCH)
            if "status" in manifest and kind == "Node":
                self.request("PATCH", f"{collection}/{metadata['name']}/status", manifest, MERGE_PATCH)
        if kind == "CustomResourceDefinition":
            until(lambda: self._is_served(manifest), f"{metadata['name']} to be served")

    def _is_served(self, crd: Manifest) -> bool:
        spec = crd["spec"]
        try:
            self.request("GET", f"/apis/{spec['group']}/{spec['versions'][0]['name']}/{spec['names']['plural']}?limit=1")
            return any(
                kind == spec["names"]["kind"] for kind, *_ in self._discover(f"{spec['group']}/{spec['versions'][0]['name']}")
            )
        except ApiError:
            return False

    def _collection(self, version: str, kind: str, namespace: str | None) -> str:
        plural, is_namespaced = self._resource(version, kind)
        scope = f"/namespaces/{namespace or 'default'}" if is_namespaced else ""
        return f"{_api(version)}{scope}/{plural}"

    def _resource(self, version: str, kind: str) -> tuple[str, bool]:
        """The plural of a kind, and whether it is namespaced, by discovery."""
        if (version, kind) not in self._resources:
            for name, plural, is_namespaced in self._discover(version):
                self._resources[version, name] = plural, is_namespaced
        if (version, kind) not in self._resources:
            raise ApiError(404, f"there is no {kind} in {version}")
        return self._resources[version, kind]

    def _discover(self, version: str) -> list[tuple[str, str, bool]]:
        found = self.request("GET", _api(version))["resources"]
        return [(each["kind"], each["name"], each["namespaced"]) for each in found if "/" not in each["name"]]

    def _make_sure(self, collection: str, manifest: Manifest) -> None:
        try:
            self.request("POST", collection, manifest)
        except ApiError as error:
            if error.status != 409:
                raise

    def _pod(self, service_account: str, namespace: str, node: str) -> Any:
        """A Pod on a Node, which nobody runs."""
        collection, name = f"/api/v1/namespaces/{namespace}/pods", f"{service_account}-{node}"
        self._make_sure(
            collection,
            {
                "metadata": {"name": name},
                "spec": {
                    "nodeName": node,
                    "serviceAccountName": service_account,
                    "containers": [{"name": "agent", "image": "none"}],
                },
            },
        )
        return self.request("GET", f"{collection}/{name}")

    def _connect(self) -> http.client.HTTPSConnection:
        context = ssl.create_default_context(cafile=str(self.ca))
        return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=30, context=context)

    def _etcd(self, call: str, body: object) -> Any:
        request = urllib.request.Request(f"http://127.0.0.1:{self.etcd_port}/v3/{call}", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.load(response)

    def _kubeconfig_text(self, url: str, credential: str, value: str) -> str:
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "testbed", "cluster": {"server": url, "certificate-authority": str(self.ca)}}],
            "users": [{"name": "user", "user": {credential: value}}],
            "contexts": [{"name": "testbed", "context": {"cluster": "testbed", "user": "user"}}],
            "current-context": "testbed",
        }
        return yaml.safe_dump(config)

    def _start_etcd(self, peer_port: int) -> None:
        client, peer = f"http://127.0.0.1:{self.etcd_port}", f"http://127.0.0.1:{peer_port}"
        shutil.rmtree(self.path / "etcd", ignore_errors=True)
        self._launch(
            ETCD,
            "--name=testbed",
            f"--data-dir={self.path / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=testbed={peer}",
            "--unsafe-no-fsync",
            # Without it a watch at rest gets no bookmarks.
            "--watch-progress-notify-interval=5s",
            *self.etcd_args,
        )

    def _start_apiserver(self) -> None:
        pki = self.path / "pki"
        listen = "127.0.0.1"
        if self.addresses:
            listen = "::" if any(":" in address for address in self.addresses) else "0.0.0.0"
        self._launch(
            API_SERVER,
            f"--etcd-servers=http://127.0.0.1:{self.etcd_port}",
            f"--bind-address={listen}",
            f"--secure-port={self.port}",
            "--advertise-address=127.0.0.1",
            "--endpoint-reconciler-type=none",
            f"--tls-cert-file={pki / 'server.crt'}",
            f"--tls-private-key-file={pki / 'server.key'}",
            f"--client-ca-file={pki / 'ca.crt'}",
            f"--token-auth-file={self.path / 'tokens.csv'}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={pki / 'accounts.pub'}",
            f"--service-account-signing-key-file={pki / 'accounts.key'}",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--authorization-mode=RBAC",
            # It waits for Secrets and tokens that no controller makes here.
            "--disable-admission-plugins=ServiceAccount",
            "--allow-privileged=true",
            "--etcd-compaction-interval=0",
            "--profiling=false",
            *self.apiserver_args,
        )
        deadline = time.monotonic() + READY_SECONDS
        while not self._is_ready():
            self._check_alive(ETCD)
            self._check_alive(API_SERVER)
            if time.monotonic() > deadline:
                raise StartError(f"kube-apiserver is not ready after {READY_SECONDS:.0f} s: {self._log_end(API_SERVER)}")
            time.sleep(0.05)

    def _is_ready(self) -> bool:
        try:
            self.request("GET", "/readyz")
            self.request("GET", "/api/v1/namespaces/default")
            self.request("GET", "/api/v1/namespaces/kube-system")
        except (ApiError, OSError, http.client.HTTPException):
            return False
        return True

    def _launch(self, name: str, *arguments: str) -> None:
        """Start a program that ends with us, even if we are killed (with the *thread* that started it, to be exact)."""
        with open(self.path / f"{name}.log", "ab") as log:
            log.truncate(0)
            self._processes[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", PROGRAMS / name, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": os.environ["PATH"], "HOME": str(self.path), "GOGC": "50"},
            )

    def _check_alive(self, name: str) -> None:
        if self._processes[name].poll() is not None:
            raise StartError(f"{name} has ended: {self._log_end(name)}")

    def _log_end(self, name: str) -> str:
        return (self.path / f"{name}.log").read_text(errors="replace")[-2000:]


def usage(pid: int | str) -> tuple[float, float]:
    """CPU seconds and resident megabytes of a process (``self``: this one)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks, pages = int(fields[11]) + int(fields[12]), int(fields[21])
    return ticks / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def until(condition: Any, what: str, seconds: float = 20.0) -> None:
    """Wait until ``condition()`` is true. AssertionError if it never is."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.02)


def in_group(crd: Mapping[str, Any], version: str) -> dict[str, Any]:
    """A CustomResourceDefinition, moved to another ``group/version``."""
    group, _, name = version.partition("/")
    spec = dict(crd["spec"]) | {"group": group, "versions": [crd["spec"]["versions"][0] | {"name": name}]}
    return {**crd, "metadata": {"name": f"{spec['names']['plural']}.{group}"}, "spec": spec}


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _api(version: str) -> str:
    return f"/apis/{version}" if "/" in version else f"/api/{version}"


# Keys and certificates ------------------------------------------------------------------------------------------------


def make_pki(path: Path, addresses: Sequence[str]) -> None:
    """``path/pki``: an authority, the API server's certificate for ``addresses`` and localhost, and the key that signs tokens."""
    folder = path / "pki"
    folder.mkdir(exist_ok=True)
    ca_key, server_key, account_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    authority = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "testbed-ca")])
    ca = (
        _certificate(authority, authority, ca_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    names: list[x509.GeneralName] = [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
    names += [x509.DNSName(name) for name in ("localhost", "kubernetes.default.svc")]
    server = (
        _certificate(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, API_SERVER)]), authority, server_key.public_key())
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    public = account_key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / "ca.crt").write_bytes(ca.public_bytes(pem))
    (folder / "server.crt").write_bytes(server.public_bytes(pem))
    (folder / "server.key").write_bytes(_private_pem(server_key))
    (folder / "accounts.key").write_bytes(_private_pem(account_key))
    (folder / "accounts.pub").write_bytes(public)


def _certificate(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=2))
    )


def _key_usage(**used: bool) -> x509.KeyUsage:
    names = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    return x509.KeyUsage(
        **{name: used.get(name, False) for name in (*names, "key_cert_sign", "crl_sign", "encipher_only", "decipher_only")}
    )


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
