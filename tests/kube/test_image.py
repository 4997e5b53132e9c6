"""The image, built for real (``.ci/setup-image``), and its two containers as the DaemonSet describes them, run by runc.

What a kubelet and its container runtime make of the manifest is made here of the same manifest: command, environment,
capabilities, a root file system that is read-only, mounts, devices, the limit of memory, the default seccomp profile, and the
network of the node. The manifests are those of the kustomize base and those of the Helm chart.
So a capability, a system call or a path to write to that wgpy needs and the manifest does not grant is missing here, too.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.controller.lab import Node
from tests.deploy.manifests import Manifest, answers, command, container, daemon_set, deployed_by, probes, variables
from tests.kube.lab import API_ADDRESS, INNER, KubeLab, capture, make_kube_lab, transport_data
from tests.kube.testbed import ROOT, Testbed, until

pytestmark = [pytest.mark.slow, pytest.mark.long]

STORAGE = ROOT / ".cache" / "image"
BUILDAH = ("buildah", "--storage-driver", "vfs", "--root", str(STORAGE / "storage"), "--runroot", str(STORAGE / "run"))
IMAGE = "localhost/wgpy:latest"
SECCOMP = Path("/usr/share/containers/seccomp.json")

TUN = {"allow": True, "type": "c", "major": 10, "minor": 200, "access": "rwm"}
"""What runc and containerd let every container open, if it is there."""

WG4, WG6 = "wireguard.caliu", "wg-v6.caliu"


def run(*command: str | Path, check: bool = True, seconds: float = 60) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=seconds, check=False)
    assert not check or done.returncode == 0, f"{' '.join(map(str, command))}: {done.stderr or done.stdout}"
    return done.stdout


# The image ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Image:
    root: Path
    environment: Mapping[str, str]
    user: str


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """Built anew if the sources have changed. Skipped where it cannot be, if WGPY_REQUIRE_KUBE is not set."""
    missing = [tool for tool in ("buildah", "runc", "debootstrap") if shutil.which(tool, path="/usr/bin:/usr/sbin") is None]
    if os.geteuid() or missing:
        reason = f"needs root and {' '.join(missing)}: run bash .ci/setup-image as root"
        if os.environ.get("WGPY_REQUIRE_KUBE"):
            pytest.fail(reason)
        pytest.skip(reason)
    run("bash", ROOT / ".ci" / "setup-image", seconds=1200)
    configuration = json.loads(run(*BUILDAH, "inspect", "--type", "image", IMAGE))["OCIv1"]["config"]
    name = run(*BUILDAH, "from", "--pull-never", IMAGE).strip()
    try:
        root = Path(run(*BUILDAH, "mount", name).strip())
        yield Image(root, dict(variable.split("=", 1) for variable in configuration["Env"]), configuration["User"])
    finally:
        run(*BUILDAH, "umount", name)
        run(*BUILDAH, "rm", name)


def test_what_is_shipped_is_wgpy_and_what_it_needs(image: Image) -> None:
    def in_image(*command: str) -> str:
        return run("chroot", image.root, "env", "-i", *(f"{name}={value}" for name, value in image.environment.items()), *command)

    assert re.fullmatch(r"wgpy \d+\.\d+\.\d+\S*\n", in_image("wgpy", "--version"))
    assert "--kubeconfig" in in_image("wgpy", "agent", "--help")
    assert "nftables" in in_image("nft", "--version")
    assert "--framework" in in_image("wgpy", "report", "--help")
    import_all = "import kubernetes.aio, pyroute2, wgpy.daemon.run, controller.agent, controller.kube.source"
    in_image("/opt/wgpy/bin/python", "-c", import_all)
    left_over = [path for path in ("source", "run/pip.crt", "etc/pip.conf", "opt/wgpy/bin/pip") if (image.root / path).exists()]
    assert left_over == []


def test_who_is_not_told_to_be_root_is_nobody_and_may_do_what_takes_no_rights(image: Image) -> None:
    words = ["chroot", f"--userspec={image.user}", str(image.root), "env", "-i", f"PATH={image.environment['PATH']}"]

    assert image.user == "65532:65532"
    assert len(run(*words, "wgpy", "genkey")) == 45
    refused = subprocess.run([*words, "wgpy", "run", "wg0"], capture_output=True, text=True, check=False, timeout=20)
    assert refused.returncode == 1 and "Traceback" not in refused.stderr


# The pod --------------------------------------------------------------------------------------------------------------


@dataclass
class Pod:
    """A pod of the DaemonSet on the node whose network namespace is ``namespace``; its volumes are folders in ``path``."""

    image: Image
    manifests: list[Manifest]
    path: Path
    namespace: str
    node: str = "n1"
    address: str = "127.0.0.1"
    started: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("sockets", "state", "calico", "api", "status-token", "runc"):
            (self.path / name).mkdir(parents=True)
        (self.path / "status-token" / "token").write_text("not-a-secret-" * 3)

    def start(self, name: str) -> None:
        bundle = self.path / f"bundle-{name}"
        bundle.mkdir(exist_ok=True)
        (bundle / "config.json").write_text(json.dumps(self.bundle(name)))
        with open(self.path / f"{name}.log", "ab") as log:
            self.started[name] = subprocess.Popen(
                [*self._runc(), "run", "--bundle", str(bundle), self._id(name)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def log(self, name: str) -> str:
        return (self.path / f"{name}.log").read_text()

    def execute(self, name: str, *command: str, check: bool = True) -> str:
        """kubectl exec."""
        return run(*self._runc(), "exec", self._id(name), *command, check=check)

    def terminate(self, name: str) -> int:
        """SIGTERM, as for a pod that is deleted; the exit status."""
        run(*self._runc(), "kill", self._id(name), "TERM")
        return self.started.pop(name).wait(20)

    def close(self) -> None:
        for name, process in self.started.items():
            run(*self._runc(), "delete", "--force", self._id(name), check=False)
            process.wait(20)

    def until(self, condition: Any, what: str) -> None:
        """Wait for a condition, while the containers live."""

        def holds() -> bool:
            for name, process in self.started.items():
                assert process.poll() is None, f"{name} has ended: {self.log(name)}"
            return bool(condition())

        try:
            until(holds, what, 30)
        except AssertionError as error:
            raise AssertionError(f"{error}\n" + "".join(f"--- {name}\n{self.log(name)}" for name in self.started)) from None

    def bundle(self, name: str) -> dict[str, Any]:
        """What a container runtime makes of the container's description."""
        spec = container(self.manifests, name)
        bounds = spec["securityContext"]
        assert bounds["capabilities"]["drop"] == ["ALL"]
        capabilities = [f"CAP_{capability}" for capability in bounds["capabilities"]["add"]]
        environment = dict(self.image.environment) | variables(spec, self.node, self.address)
        environment |= {
            "KUBERNETES_SERVICE_HOST": API_ADDRESS,
            "KUBERNETES_SERVICE_PORT": (self.path / "api" / "port").read_text(),
        }
        return {
            "ociVersion": "1.0.0",
            "process": {
                "user": {"uid": bounds["runAsUser"], "gid": bounds["runAsGroup"]},
                "cwd": "/",
                "args": command(spec, environment),
                "env": [f"{name}={value}" for name, value in environment.items()],
                "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
                "noNewPrivileges": not bounds["allowPrivilegeEscalation"],
            },
            "root": {"path": str(self.image.root), "readonly": bounds["readOnlyRootFilesystem"]},
            "mounts": [*_MOUNTS, *(self._mount(mount) for mount in spec["volumeMounts"])],
            "linux": {
                "namespaces": [
                    *({"type": kind} for kind in ("pid", "ipc", "uts", "mount")),
                    {"type": "network", "path": f"/var/run/netns/{self.namespace}"},
                ],
                "resources": {
                    "devices": [{"allow": False, "access": "rwm"}, TUN],
                    "memory": {"limit": mebibytes(spec["resources"]["limits"]["memory"]) << 20},
                },
                "seccomp": seccomp(set(capabilities)),
                "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
            },
        }

    def _mount(self, mount: Manifest) -> dict[str, Any]:
        volumes = {volume["name"]: volume for volume in daemon_set(self.manifests)["spec"]["template"]["spec"]["volumes"]}
        path = Path("/dev/net/tun") if mount["name"] == "tun" else self.path / mount["name"]
        assert mount["name"] in volumes and path.exists()
        options = ["rbind", "ro" if mount.get("readOnly") else "rw"]
        return {"destination": mount["mountPath"], "type": "bind", "source": str(path), "options": options}

    def _id(self, name: str) -> str:
        return f"{self.namespace}-{name}"

    def _runc(self) -> list[str]:
        return ["runc", "--root", str(self.path / "runc")]


def mebibytes(quantity: str) -> int:
    found = re.fullmatch(r"(\d+)Mi", quantity)
    assert found, quantity
    return int(found[1])


_MOUNTS = [
    {"destination": "/proc", "type": "proc", "source": "proc"},
    {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=64k"]},
    {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "size=64m"]},
    {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
]


def seccomp(capabilities: set[str]) -> dict[str, Any]:
    """The profile that stands for RuntimeDefault here, for a container with these capabilities on x86-64."""

    def applies(rule: Manifest) -> bool:
        includes, excludes = rule.get("includes", {}), rule.get("excludes", {})
        return (
            set(includes.get("caps", ())) <= capabilities
            and not set(excludes.get("caps", ())) & capabilities
            and ("arches" not in includes or "amd64" in includes["arches"])
        )

    profile = json.loads(SECCOMP.read_text())
    keys = ("names", "action", "args", "errnoRet")
    rules = [{key: rule[key] for key in keys if rule.get(key)} for rule in profile["syscalls"] if applies(rule)]
    return {
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile["defaultErrnoRet"],
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": rules,
    }


def is_probed(pod: Pod, *names: str) -> bool:
    """Whether all probes of these containers are answered, as the kubelet would ask."""
    urls = (url for name in names for url in probes(container(pod.manifests, name), pod.address))
    return answers(pod.namespace, *urls)


def is_whole(pod: Pod) -> bool:
    """Whether the agent says that there is a peer and all is as it ought to be."""
    said = pod.execute("agent", "wgpy", "mesh", "--output", "json", check=False)
    found: dict[str, Any] = json.loads(said) if said else {"complaints": ["nothing is known"]}
    return not found["complaints"] and all(family["peers"] for family in found["families"])


@pytest.fixture(params=["kustomize", "helm"])
def pod(request: pytest.FixtureRequest, image: Image, tmp_path: Path) -> Iterator[Pod]:
    """A pod on a node that has nothing but a loopback."""
    namespace = f"h{os.getpid()}"
    run("ip", "netns", "add", namespace)
    run("ip", "-n", namespace, "link", "set", "lo", "up")
    pod = Pod(image, deployed_by(request.param, tmp_path), tmp_path / "pod", namespace)
    (pod.path / "api" / "port").write_text("1")
    try:
        yield pod
    finally:
        pod.close()
        run("ip", "netns", "del", namespace)


def test_the_data_plane_runs_as_the_manifest_bounds_it(pod: Pod) -> None:
    pod.start("data-plane")

    pod.until(lambda: {f"{WG4}.sock", f"{WG6}.sock"} <= set(os.listdir(pod.path / "sockets")), "both sockets")
    links = run("ip", "-n", pod.namespace, "-br", "link")
    assert WG4 in links and WG6 in links
    assert set(pod.execute("data-plane", "wgpy", "show", "interfaces").split()) == {WG4, WG6}
    pod.execute("data-plane", "wgpy", "set", WG4, "listen-port", "51820", "fwmark", "0x1000")  # SO_MARK wants NET_ADMIN
    run("ip", "-n", pod.namespace, "link", "set", WG4, "up")
    pod.until(lambda: ":51820 " in run("ip", "netns", "exec", pod.namespace, "ss", "-Hlun"), "its UDP port to be open")
    pod.until(lambda: os.listdir(pod.path / "state"), "its configuration to be kept")

    status = pod.terminate("data-plane")

    assert status == 0, pod.log("data-plane")
    assert WG4 in run("ip", "-n", pod.namespace, "-br", "link"), "it is to outlive its process"


def test_the_data_plane_answers_its_probes(pod: Pod) -> None:
    pod.start("data-plane")

    pod.until(lambda: is_probed(pod, "data-plane"), "its probes to be answered")
    pod.until(
        lambda: answers(pod.namespace, f"http://{pod.address}:9587/metrics"),
        "the metrics of IPv6, which has a process of its own",
    )


def test_without_its_capability_it_would_not_run(pod: Pod) -> None:
    """The bounds are real: this is not a container that may do anything."""
    container_spec = daemon_set(pod.manifests)["spec"]["template"]["spec"]["containers"]
    for each in container_spec:
        each["securityContext"]["capabilities"]["add"] = []

    pod.start("data-plane")

    assert pod.started.pop("data-plane").wait(20) != 0
    assert "CAP_NET_ADMIN" in pod.log("data-plane") or "not permitted" in pod.log("data-plane")


# Both containers, on a real API server ----------------------------------------------------------------------------------


def on_node(image: Image, lab: KubeLab, node: Node, tool: str, folder: Path) -> Pod:
    """The pod of a node of the lab, with the token that a kubelet would mount."""
    pod = Pod(image, deployed_by(tool, folder), folder / "pod", node.namespace, node.name, f"192.0.2.{node.number}")
    api = pod.path / "api"
    (api / "token").write_text(lab.kube.token("wgpy", node=node.name))
    shutil.copy(lab.kube.ca, api / "ca.crt")
    (api / "namespace").write_text("kube-system")
    (api / "port").write_text(str(lab.kube.port))
    return pod


@pytest.mark.parametrize("tool", ["kustomize", "helm"])
def test_the_pod_joins_the_mesh_with_the_rights_it_is_shipped_with(
    image: Image, kube: Testbed, tmp_path: Path, tool: str
) -> None:
    """The lab has applied the shipped rights and policies."""
    with make_kube_lab(tmp_path, kube, f"h{os.getpid()}x", wireguardEnabled=True, wireguardEnabledV6=True) as lab:
        node = lab.add_node(1)
        pod = on_node(image, lab, node, tool, tmp_path / "n1")
        try:
            pod.start("agent")  # no order is promised
            pod.start("data-plane")

            pod.until(lambda: node.key(4) and node.key(6), "both keys to be published")
            own = pod.execute("agent", "wgpy", "show", WG4, "public-key").strip()
            assert node.key(4) == own
            pod.until(lambda: is_probed(pod, "agent"), "the agent's probes to be answered")
            log = pod.log("agent")
            assert not re.search("forbidden|Read-only|not permitted|NET_RAW|Traceback| ERROR ", log), log

            assert pod.terminate("agent") == 0
            assert node.key(4) == own
        finally:
            pod.close()


def test_pods_meet_encrypted_between_a_node_of_each_kind(image: Image, kube: Testbed, tmp_path: Path) -> None:
    """One node has what kustomize deploys, the other what Helm does, strict mode included."""
    with make_kube_lab(tmp_path, kube, f"h{os.getpid()}y", wireguardEnabled=True, wireguardEnabledV6=True) as lab:
        nodes = [lab.add_node(1), lab.add_node(2)]
        lab.add_pod(1)
        lab.add_pod(2)
        lab.start_allocator(1, 2)
        pods = [
            on_node(image, lab, node, tool, tmp_path / node.name) for node, tool in zip(nodes, ("kustomize", "helm"), strict=True)
        ]
        try:
            for pod in pods:
                pod.start("data-plane")
                pod.start("agent")
            lab.until_pods_meet((1, 2), (2, 1))
            for pod in pods:
                pod.until(lambda pod=pod: is_probed(pod, "agent", "data-plane"), "all probes to be answered")
                pod.until(
                    lambda pod=pod: is_whole(pod), "everything to be as it ought to be: pods that met may have met in clear"
                )

            with capture(nodes[0], INNER) as in_clear, capture(nodes[0], transport_data(4)) as encrypted:
                lab.until_pods_meet((1, 2), (2, 1))
                assert in_clear() == [] and encrypted()
            refusing = [bool(node.run("nft", "list", "tables").strip().count("wgpy-guard")) for node in nodes]
            assert refusing == [False, True]
        finally:
            lab.stop_allocator()
            for pod in pods:
                pod.close()
