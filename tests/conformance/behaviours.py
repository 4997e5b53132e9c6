"""All behaviours: what a WireGuard must do, tried on whichever implementation is at hand (``python -m tests.conformance``).

A *behaviour* is one sentence of the protocol that can be seen from outside, with a function that looks. It is tried on a
:class:`~tests.conformance.boxes.Box`: a node with an implementation on it, of which three things are visible. Its *outer*
leg, where its datagrams are; its *inner* leg, by which it forwards packets to and from the tunnel; and its configuration. Both
legs end in the *tester's* namespace, where a :class:`~tests.conformance.peer.Peer` plays the other side of the protocol by
hand: it can do what is right, and whatever is wrong, to the byte and to the millisecond.

    tester ── outer ── box: eth0, wg0, eth1 ── inner ── tester

So a behaviour knows nothing of how an implementation is started, or where: in a process of this machine, or in the kernel of
a guest.

Importing this module imports those that have the behaviours: :mod:`tests.conformance.rows`, and :mod:`tests.conformance.matrix`
for those of pairs.
"""

import tests.conformance.matrix as _matrix  # noqa: F401
from tests.conformance.behaviour import BEHAVIOURS, Behaviour
from tests.conformance.rows import (  # noqa: F401
    cookies,
    device,
    handshake,
    keypairs,
    load,
    marks,
    outgoing,
    process,
    roaming,
    timers,
    transport,
    uapi,
)


def in_order() -> list[Behaviour]:
    """All of them as the table has them: by section, and those of pairs last."""
    return sorted(BEHAVIOURS.values(), key=_place)


def _place(each: Behaviour) -> tuple[bool, list[int]]:
    return each.pairing is not None, [int(number) for number in each.section.split(".") if number.isdigit()]
