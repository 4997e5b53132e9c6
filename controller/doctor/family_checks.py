"""What is looked at in each family: key, interface, port, firewall, routes, rules, marks, peers. Pure.

What follows from another fault is not told as well: who has no data plane need not hear that it does not listen.
"""

import errno
from collections import defaultdict
from collections.abc import Iterator

from controller.doctor.diagnosis import Diagnosis, Found, Unseen, listed, restart
from controller.doctor.facts import Facts, FamilyFacts, KeyFile
from controller.plan import (
    AddAddress,
    AddRule,
    Configure,
    LoosenReversePath,
    PutRoute,
    RemoveRoute,
    RemoveRule,
    SetGuard,
    SetLink,
    SetMasquerade,
)
from controller.state import TWIN_METRIC, Route, RouteKind
from controller.status import STALE_SECONDS, PeerStatus, Traffic
from wgpy.config import SetDevice, SetPeer

MOST_COMMANDS = 3

NOBODY_LISTENS = {errno.ECONNREFUSED}
UNREACHABLE = {
    errno.EHOSTUNREACH: "no route to host",
    errno.ENETUNREACH: "network is unreachable",
    errno.EACCES: "a route or a firewall of this host refuses",
    errno.EPERM: "a firewall of this host refuses",
}


def keys(facts: Facts) -> Found:
    for family in _enabled(facts):
        if family.key_file is KeyFile.MISSING:
            yield Diagnosis(
                "NoKey",
                family.key_path,
                f"{family.key_path} is not there",
                "without a private key this node has no place in the mesh; an agent makes one when it starts",
                (restart(facts),),
            )
        elif family.key_file is KeyFile.UNREADABLE:
            yield Diagnosis(
                "KeyUnreadable",
                family.key_path,
                f"{family.key_path} holds no private key that can be read",
                "the agent does not start; a new key is made where there is none, and others learn of it at once",
                (f"rm {family.key_path}", restart(facts)),
            )
        elif family.key_file is KeyFile.OPEN:
            yield Diagnosis(
                "KeyOpen",
                family.key_path,
                f"{family.key_path} can be read by others than its owner",
                "who has read it can pass for this node",
                (f"rm {family.key_path}   # a new one is made; chmod 600 if nobody can have seen it", restart(facts)),
            )
        if family.key_file in (KeyFile.GOOD, KeyFile.OPEN) and family.announced != family.public_key:
            shown = "another key" if family.announced else "no key"
            yield Diagnosis(
                "KeyNotPublished",
                str(family.family),
                f"{family.family}: the cluster shows {shown} for this node, and not {family.public_key}",
                "others encrypt to the key they are shown, and send in clear where there is none",
                (f"kubectl get node {facts.node} -o yaml | grep WireguardPublicKey   # who keeps writing it?", restart(facts)),
            )


def data_plane(facts: Facts) -> Found:
    for family in _enabled(facts):
        if family.public_key is None:
            continue  # without a key nothing of it was looked at
        if family.device_error is not None:
            yield Diagnosis(
                "NoDataPlane",
                family.interface,
                f"no data plane answers for {family.interface}: {family.device_error}",
                "nothing is encrypted or decrypted here; what ought to be is dropped",
                (f"wgpy run {family.interface} --persist --state {facts.state}", f"tail {facts.state}/{family.interface}.log"),
            )
        elif family.link is None:
            yield Diagnosis(
                "NoInterface",
                family.interface,
                f"a data plane answers for {family.interface}, but there is no such interface in this network namespace",
                "no packet can reach it",
                (f"ip link show {family.interface}", f"wgpy run {family.interface} --persist --state {facts.state}"),
            )
        elif not family.link.is_up:
            yield Diagnosis(
                "InterfaceDown",
                family.interface,
                f"the interface {family.interface} is down",
                "packets that ought to be encrypted are refused",
                (f"ip link set {family.interface} up", restart(facts)),
            )


def port(facts: Facts) -> Found:
    for family in _running(facts):
        if family.listen_port == family.port and not family.port_is_taken:
            continue
        if family.port_is_taken:
            yield Diagnosis(
                "PortTaken",
                str(family.port),
                f"UDP port {family.port} belongs to another process, and {family.interface} does not listen on it",
                "peers send to that port: nothing they send arrives",
                (f"ss -lunp 'sport = :{family.port}'   # stop that process", restart(facts)),
            )
        else:
            yield Diagnosis(
                "PortDiffers",
                str(family.port),
                f"{family.interface} listens on UDP port {family.listen_port or 'none'}, and peers send to {family.port}",
                "nothing they send arrives",
                (f"wg set {family.interface} listen-port {family.port}", restart(facts)),
            )


def firewall(facts: Facts) -> Found:
    if facts.drops is None:
        yield Unseen("the firewall: there is no nft here, or it is not allowed to look")
        return
    for drop in facts.drops:
        way, side = ("comes in to", "dport") if drop.is_inbound else ("goes out from", "sport")
        by_iptables = drop.chain.isupper() and drop.family in ("ip", "ip6")
        program = "iptables" if drop.family == "ip" else "ip6tables"
        command = (
            f"{program} -t {drop.table} -I {drop.chain} -p udp --{side} {drop.port} -j ACCEPT"
            if by_iptables
            else f"nft insert rule {drop.family} {drop.table} {drop.chain} udp {side} {drop.port} accept"
        )
        yield Diagnosis(
            "FirewallDrops",
            f"{drop.family} {drop.table} {drop.chain}",
            f"the firewall refuses what {way} UDP port {drop.port}: table {drop.family} {drop.table}, {drop.rule}",
            "peers cannot shake hands with this node, and what is encrypted does not arrive",
            (command,),
        )


def links(facts: Facts) -> Found:
    """MTU and addresses of the interface."""
    for family in _running(facts):
        for step in family.steps:
            if isinstance(step, SetLink) and step.mtu is not None and family.link is not None:
                yield Diagnosis(
                    "WrongMtu",
                    family.interface,
                    f"{family.interface} has MTU {family.link.mtu}, and ought to have {step.mtu}",
                    "too large a one loses large packets, too small a one costs throughput",
                    (f"ip link set {family.interface} mtu {step.mtu}",),
                )
            elif isinstance(step, AddAddress):
                yield Diagnosis(
                    "NoAddress",
                    family.interface,
                    f"{family.interface} has not the address {step.address}",
                    "others drop what this node itself sends to their pods",
                    (f"ip addr add {step.address} dev {family.interface}",),
                )


def path(facts: Facts) -> Found:
    """The largest packet that gets through the tunnel."""
    for family in _running(facts):
        mtu = family.link.mtu if family.link is not None else None
        short = {name: size for name, size in family.largest.items() if mtu is not None and size < mtu}
        if mtu is not None and short:
            fits = min(short.values())
            field = "wireguardMTU" if family.family.value == 4 else "wireguardMTUV6"
            yield Diagnosis(
                "PathMtu",
                str(family.family),
                f"packets of {mtu} bytes do not get through the tunnel to {listed(sorted(short))}, those of {fits} do: the way "
                f"there carries {fits + family.overhead} bytes, not {mtu + family.overhead}",
                "large packets are lost without a word: connections open, and hang as soon as they carry much",
                (
                    "kubectl patch felixconfigurations.crd.projectcalico.org default --type merge "
                    f'-p \'{{"spec":{{"{field}":{fits // 4 * 4}}}}}\'',
                ),
            )
        elif not family.largest and any(_encrypted(family)):
            yield Unseen(f"{family.family}: the path's MTU, as no peer answers through the tunnel")


def routes(facts: Facts) -> Found:
    for family in _running(facts):
        put = [step.route for step in family.steps if isinstance(step, PutRoute) and step.route.metric != TWIN_METRIC]
        twins = [step.route for step in family.steps if isinstance(step, PutRoute) and step.route.metric == TWIN_METRIC]
        removed = [step.route for step in family.steps if isinstance(step, RemoveRoute)]
        for reason, what, why, routes in (
            ("RouteMissing", "is missing", "packets to it are refused, or go in clear", put),
            ("RouteUnguarded", "has no prohibit route behind it", "packets to it go in clear when the interface goes", twins),
        ):
            if routes:
                yield Diagnosis(
                    reason,
                    str(family.family),
                    f"in table {family.table} the route to {listed([str(route.prefix) for route in routes])} {what}",
                    why,
                    tuple(_route_command(family, route) for route in routes[:MOST_COMMANDS]),
                )
        if removed and not put:
            yield Diagnosis(
                "RouteForeign",
                str(family.family),
                f"table {family.table} has routes that nobody has asked for: {listed([str(one.prefix) for one in removed])}",
                "packets to these go where they ought not to",
                tuple(
                    f"ip -{family.family.value} route del {_kind(route)}{route.prefix} table {family.table}"
                    for route in removed[:MOST_COMMANDS]
                ),
            )
        if not put and not any(isinstance(step, AddRule) for step in family.steps):
            yield from _ways(family)


def _ways(family: FamilyFacts) -> Found:
    """What the kernel does, whatever the tables look like."""
    astray = [way for way in family.ways if way.interface != family.interface]
    if astray:
        places = listed(sorted({way.interface or "nowhere" for way in astray}))
        targets = listed([f"{way.destination} ({way.peer})" for way in astray])
        yield Diagnosis(
            "WayAstray",
            str(family.family),
            f"packets to {targets} go to {places}, not into {family.interface}",
            "a rule or route of somebody else comes before ours: they leave in clear, or not at all",
            (f"ip -{family.family.value} rule", f"ip -{family.family.value} route get {astray[0].destination}"),
        )


def rules(facts: Facts) -> Found:
    for family in _running(facts):
        for step in family.steps:
            if isinstance(step, AddRule):
                rule = step.rule
                yield Diagnosis(
                    "RuleMissing",
                    str(family.family),
                    f"the rule of priority {rule.priority} to table {family.table} is missing",
                    "no packet is directed into the tunnel: all pods talk in clear",
                    (
                        f"ip -{family.family.value} rule add not fwmark {rule.fwmark:#x}/{rule.fwmask:#x} lookup {family.table} "
                        f"priority {rule.priority}",
                    ),
                )
            elif isinstance(step, RemoveRule):
                yield Diagnosis(
                    "RuleForeign",
                    f"{family.family} {step.rule.priority}",
                    f"there is a rule of priority {step.rule.priority} to table {family.table} that nobody has asked for",
                    "it directs packets past the tunnel, or into it twice",
                    (f"ip -{family.family.value} rule del priority {step.rule.priority} lookup {family.table}",),
                )
            elif isinstance(step, LoosenReversePath):
                yield Diagnosis(
                    "ReversePathStrict",
                    family.underlay or "underlay",
                    f"the reverse path filter of {family.underlay} insists on the best path",
                    "encrypted packets of hosts come in by another way than replies go out, and are dropped",
                    (f"sysctl -w net.ipv4.conf.{family.underlay}.rp_filter=2",),
                )
        if family.forwards is False:
            name = "net.ipv4.ip_forward" if family.family.value == 4 else "net.ipv6.conf.all.forwarding"
            yield Diagnosis(
                "NoForwarding",
                str(family.family),
                f"this node does not forward {family.family} packets ({name} is 0)",
                "nothing gets from the tunnel to the pods, or back",
                (f"sysctl -w {name}=1",),
            )


def foreign_marks(facts: Facts) -> Found:
    masks = {family.fwmask for family in facts.families}
    for family in _running(facts):
        for rule in family.foreign_rules:
            yield Diagnosis(
                "MarkInRule",
                f"{family.family} {rule.priority}",
                f"the {family.family} rule of priority {rule.priority} (not ours) goes by the mark "
                f"{rule.fwmark:#x}/{rule.fwmask:#x}, which shares bits with ours, {family.fwmark:#x}/{family.fwmask:#x}",
                "it takes our encrypted packets elsewhere, or what it marks goes past the tunnel in clear",
                (
                    f"ip -{family.family.value} rule   # who made it?",
                    "wgpy agent --fwmark 0x2000/0x2000   # another bit for us, in its DaemonSet",
                ),
            )
    if facts.marks is None:
        yield Unseen("which marks the firewall sets: there is no nft here, or it is not allowed to look")
        return
    for mark in facts.marks:
        if any(mark.bits & mask for mask in masks):
            yield Diagnosis(
                "MarkSetByOthers",
                mark.where,
                f"somebody else sets the packet mark {mark.bits:#x} ({mark.where}), which shares bits with ours",
                "pods' packets that carry it are taken for encrypted ones and go past the tunnel, in clear",
                (
                    "nft -a list ruleset | grep 'mark set'",
                    "wgpy agent --fwmark 0x2000/0x2000   # another bit for us, in its DaemonSet",
                ),
            )


def device(facts: Facts) -> Found:
    for family in _running(facts):
        changes = [change for step in family.steps if isinstance(step, Configure) for change in step.changes]
        own = [change for change in changes if isinstance(change, SetDevice)]
        peers = {change.public_key for change in changes if isinstance(change, SetPeer)}
        if any(change.private_key is not None for change in own):
            yield Diagnosis(
                "KeyDiffers",
                family.interface,
                f"{family.interface} has another private key than {family.key_path}",
                "peers encrypt to the key of the file, and nothing they send can be read",
                (restart(facts),),
            )
        if any(change.fwmark is not None for change in own):
            yield Diagnosis(
                "MarkDiffers",
                family.interface,
                f"{family.interface} does not mark its encrypted packets with {family.fwmark:#x}",
                "they are directed into the tunnel again, and never leave",
                (f"wg set {family.interface} fwmark {family.fwmark:#x}",),
            )
        if peers:
            yield Diagnosis(
                "PeersDiffer",
                family.interface,
                f"{len(peers)} peers of {family.interface} are not configured as the cluster has them",
                "packets to or from their pods are dropped",
                (f"wg show {family.interface}", restart(facts)),
            )


def nat(facts: Facts) -> Found:
    for family in _running(facts):
        for step in family.steps:
            if isinstance(step, SetMasquerade) and step.masquerades:
                yield Diagnosis(
                    "NoMasquerade",
                    str(family.family),
                    f"the nftables table wgpy, which masquerades what this node sends into {family.interface}, is missing",
                    "processes of this node do not reach services whose pods are behind the tunnel",
                    ("nft list ruleset   # is there an nft?", restart(facts)),
                )
            elif isinstance(step, SetGuard) and step.guard is not None:
                yield Diagnosis(
                    "NoGuard",
                    str(family.family),
                    "the nftables table wgpy-guard of strict mode is missing or differs",
                    "plaintext may come in and go out that strict mode promises to refuse",
                    (f"nft -f {facts.state}/guard.nft", restart(facts)),
                )


def handshakes(facts: Facts) -> Found:
    for family in _running(facts):
        for peer in _encrypted(family):
            answer = family.knocks.get(peer.name, 0)
            place = f"{peer.name} ({peer.endpoint or 'no endpoint'})"
            is_fresh = peer.last_handshake is not None and facts.now - peer.last_handshake <= STALE_SECONDS
            if answer in NOBODY_LISTENS:
                yield Diagnosis(
                    "PeerPortClosed",
                    peer.name,
                    f"nobody listens on {place}: the port is closed",
                    "what is encrypted for its pods is lost",
                    (f"wgpy doctor   # on {peer.name}: is its data plane running?", f"nc -uvz {_host_port(peer.endpoint)}"),
                )
            elif answer in UNREACHABLE and not is_fresh:
                yield Diagnosis(
                    "PeerUnreachable",
                    peer.name,
                    f"{place} cannot be reached: {UNREACHABLE[answer]}",
                    "what is encrypted for its pods is lost",
                    (f"ping {_host_port(peer.endpoint).split()[0]}", f"kubectl get node {peer.name} -o wide"),
                )
            elif peer.is_silent:
                port = _host_port(peer.endpoint).split()[-1]
                yield Diagnosis(
                    "PeerSilent",
                    peer.name,
                    f"{place} does not answer handshakes",
                    "what is encrypted for its pods is lost. A firewall there or on the way, a wrong clock, or another key",
                    (
                        f"wgpy doctor   # on {peer.name}",
                        f"tcpdump -ni {family.underlay or 'any'} udp port {port}   # answers? then see keys and clocks",
                    ),
                )


def clear(facts: Facts) -> Found:
    for family in _running(facts):
        by_why: defaultdict[tuple[Traffic, str], list[str]] = defaultdict(list)
        for peer in family.status.peers if family.status is not None else ():
            if peer.traffic is not Traffic.ENCRYPTED:
                by_why[peer.traffic, peer.why].append(peer.name)
        for (traffic, reason), names in by_why.items():
            if reason.startswith("claims ") or "public key but no" in reason or "routeSyncDisabled" in reason:
                continue  # said already, as a finding about the cluster
            is_clear = traffic is Traffic.CLEAR
            yield Diagnosis(
                "InClear" if is_clear else "Refused",
                f"{family.family} {reason}",
                f"{family.family} traffic to {listed(names)} {'goes in clear' if is_clear else 'is refused'}: {reason}",
                "their pods can be read on the wire" if is_clear else "their pods cannot be reached",
                (f"kubectl describe node {names[0]}", f"wgpy doctor   # on {names[0]}"),
            )


# Words ------------------------------------------------------------------------------------------------------------


def _enabled(facts: Facts) -> Iterator[FamilyFacts]:
    return (family for family in facts.families if family.rest is None)


def _running(facts: Facts) -> Iterator[FamilyFacts]:
    """Those with a data plane and an interface that is up: without, all else is a consequence."""
    return (one for one in _enabled(facts) if one.device_error is None and one.link is not None and one.link.is_up)


def _encrypted(family: FamilyFacts) -> Iterator[PeerStatus]:
    peers = family.status.peers if family.status is not None else ()
    return (peer for peer in peers if peer.traffic is Traffic.ENCRYPTED)


def _route_command(family: FamilyFacts, route: Route) -> str:
    device = f" dev {family.interface}" if route.kind is RouteKind.DEVICE else ""
    metric = f" metric {route.metric}" if route.metric else ""
    where = f"table {family.table}{metric} proto {route.protocol}"
    return f"ip -{family.family.value} route replace {_kind(route)}{route.prefix}{device} {where}"


def _kind(route: Route) -> str:
    return "" if route.kind is RouteKind.DEVICE else f"{route.kind.value} "


def _host_port(endpoint: str | None) -> str:
    host, _, port = (endpoint or "ADDRESS:PORT").rpartition(":")
    return f"{host.strip('[]')} {port}"
