"""What is looked at once on a host: its device, rights, clock, agent, and what the cluster says. Pure."""

from controller.doctor.diagnosis import Diagnosis, Found, Unseen, restart, span
from controller.doctor.facts import Facts
from controller.doctor.remedies import remedy
from controller.status import HAS_LEFT, YIELDS

CLOCK_SECONDS = 30.0
"""What clocks may differ by. Handshakes mind any step back, but those of less are over before anybody looks."""

LEAK_SECONDS = 3600.0
"""How long a leak is told of after the last packet."""


def tun(facts: Facts) -> Found:
    if facts.tun_error is not None:
        yield Diagnosis(
            "NoTun",
            "/dev/net/tun",
            f"/dev/net/tun cannot be used: {facts.tun_error}",
            "a data plane in userspace has no interface without it",
            ("modprobe tun", "mkdir -p /dev/net && mknod /dev/net/tun c 10 200   # in a container: mount the host's"),
        )


def capabilities(facts: Facts) -> Found:
    if not facts.has_net_admin:
        yield Diagnosis(
            "NoNetAdmin",
            "CAP_NET_ADMIN",
            "this process has no CAP_NET_ADMIN",
            "the agent and the data plane can change neither interfaces nor routes without it, and much cannot be looked at here",
            ("sudo wgpy doctor   # in a pod: securityContext.capabilities.add: [NET_ADMIN]",),
        )


def clock(facts: Facts) -> Found:
    latest = max(facts.moments, key=lambda moment: moment.at, default=None)
    why = (
        "peers refuse a handshake that is older than the last one they took (TAI64N), so once this node's data plane starts anew "
        "nobody answers it until the clock has caught up"
    )
    commands = ("timedatectl set-ntp true", "chronyc makestep   # or: date -s '@SECONDS'")
    if facts.server_lead is not None and abs(facts.server_lead) > CLOCK_SECONDS:
        slow = "behind" if facts.server_lead > 0 else "ahead of"
        yield Diagnosis(
            "ClockWrong", "clock", f"this node's clock is {span(abs(facts.server_lead))} {slow} the API server's", why, commands
        )
    elif latest is not None and latest.at - facts.now > CLOCK_SECONDS:
        yield Diagnosis(
            "ClockWentBack",
            "clock",
            f"this node's clock has gone back: {latest.what} was {span(latest.at - facts.now)} later than it is now",
            why,
            commands,
        )


def agent(facts: Facts) -> Found:
    if facts.state_error is not None:
        yield Diagnosis(
            "NoState",
            facts.state,
            facts.state_error,
            "the private keys are kept there: without them this node is nobody in the mesh",
            (f"ls -la {facts.state}", f"wgpy agent --state {facts.state}"),
        )
        return
    if facts.agent_runs is None:
        yield Unseen("whether an agent runs")
    elif facts.has_left:
        yield Diagnosis(
            "HasLeft",
            "agent",
            HAS_LEFT,
            "its pods talk in clear with those of other nodes, and in strict mode other nodes refuse them",
            (restart(facts),),
        )
    elif not facts.agent_runs:
        yield Diagnosis(
            "NoAgent",
            "agent",
            f"no agent uses {facts.state}",
            "packets flow on as they did, but what changes in the cluster is not followed: new pods go in clear",
            (restart(facts),),
        )
    elif facts.agent is None:
        yield Unseen("what the agent says of itself: it has written nothing yet")
    else:
        for family in facts.agent.families:
            if family.failure is not None:
                yield Diagnosis(
                    "AgentFails",
                    str(family.family),
                    f"{family.family}: the agent's last pass has failed: {family.failure}",
                    "what has changed in the cluster since then is not followed on this node",
                    ("kubectl -n kube-system logs -c agent POD   # which: kubectl -n kube-system get pods -o wide",),
                )


def leaks(facts: Facts) -> Found:
    """What the agent's leak detector has seen of late, where it is on."""
    told = facts.agent.leaks if facts.agent is not None else None
    if facts.agent is not None and told is None:
        yield Unseen("no leak detector runs here: wgpy agent --detect-leaks")
    for leak in told.leaks if told is not None else ():
        if facts.now - leak.at <= LEAK_SECONDS:
            yield Diagnosis(
                "LeakSeen",
                f"{leak.family} {leak.peer} {leak.direction.value}",
                f"{leak.packets} {leak.direction.value} packets between pods here and on {leak.peer} were seen in clear, "
                f"the last {span(max(facts.now - leak.at, 0.0))} ago: {leak.example}",
                "they ought to have been encrypted, and could be read on the wire",
                (f"wgpy verify {leak.peer}", f"wgpy doctor   # on {leak.peer}, if nothing else is wrong here"),
            )


def api(facts: Facts) -> Found:
    if facts.source_error is not None:
        yield Diagnosis(
            "ClusterAway",
            facts.source,
            f"the cluster cannot be read: {facts.source_error}",
            "this node goes by what it remembers: keys, pods and nodes that have changed since are not followed",
            (
                "kubectl get --raw /readyz",
                f"kubectl auth can-i list nodes --as system:serviceaccount:kube-system:wgpy   # and look at {facts.source}",
            ),
        )
    for right in facts.denied:
        verb, _, resource = right.partition(" ")
        yield Diagnosis(
            "NotAllowed",
            right,
            f"the API server does not allow this account to {right}",
            "keys cannot be published, or nobody is told of what is wrong",
            (
                f"kubectl auth can-i {verb} {resource} --as system:serviceaccount:kube-system:wgpy",
                "kubectl apply -k deploy/kustomize/base",
            ),
        )


def membership(facts: Facts) -> Found:
    if not facts.is_known:
        if facts.source_error is None:
            yield Diagnosis(
                "NoSuchNode",
                facts.node,
                f"there is no node {facts.node} in the cluster",
                "which keys and pods are this node's is not known",
                ("kubectl get nodes", "wgpy doctor --node NAME"),
            )
        return
    if not facts.families and facts.state_error is None:
        yield Diagnosis(
            "NotEnabled",
            "FelixConfiguration",
            "WireGuard is not enabled for this node",
            "all pods talk in clear",
            (
                "kubectl patch felixconfigurations.crd.projectcalico.org default --type merge "
                '-p \'{"spec":{"wireguardEnabled":true}}\'',
            ),
        )
    for family in facts.families:
        if family.rest == YIELDS:
            yield Unseen(f"{family.family}: {YIELDS}")
        elif family.rest is not None and not any(one.reason == "FelixHasWireguard" for one in facts.findings):
            yield Diagnosis(
                "Resting",
                str(family.family),
                f"{family.family}: not part of the mesh: {family.rest}",
                "this node's pods talk in clear",
                (f"kubectl get node {facts.node} -o yaml",),
            )


def cluster(facts: Facts) -> Found:
    for finding in facts.findings:
        if finding.is_warning:
            known = remedy(finding, facts.node, facts.state)
            yield Diagnosis(finding.reason, finding.subject, f"{finding.subject}: {finding.message}", known.why, known.commands)
