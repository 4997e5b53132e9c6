"""Every fuzz target by name.

A *target* is a function of bytes. It returns if all is as it should be, which includes the refusals that its docstring names;
whatever it raises is a *finding*. Coverage-guided fuzzing (:mod:`tests.fuzz.__main__`) makes up inputs for it; ``corpus/NAME``
keeps a few that reach all there is to reach, which ordinary tests run (tests/fuzz/test_corpus.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz import datapath, device, hostile, netlink, offload, servers, text

CORPUS = Path(__file__).parent / "corpus"


@dataclass(frozen=True)
class Target:
    """``longest`` bounds the inputs that are made up, in bytes."""

    check: Callable[[bytes], None]
    longest: int

    @property
    def summary(self) -> str:
        return (self.check.__doc__ or "").partition(".")[0]


TARGETS = {
    "messages": Target(datapath.messages, 200),
    "datagrams": Target(hostile.datagrams, 512),
    "inner-packets": Target(datapath.inner_packets, 384),
    "tun-packets": Target(datapath.tun_packets, 384),
    "refused-packets": Target(datapath.refused_packets, 128),
    "superpackets": Target(offload.superpackets, 192),
    "coalescing": Target(offload.coalescing, 512),
    "uapi-set": Target(text.uapi_set, 512),
    "uapi-reply": Target(text.uapi_reply, 1024),
    "uapi-server": Target(servers.uapi_server, 512),
    "wg-config": Target(text.wg_config, 512),
    "values": Target(text.values, 64),
    "http": Target(servers.http, 512),
    "routes": Target(netlink.routes, 256),
    "netlink-answers": Target(netlink.answers, 256),
    "device": Target(device.device, 512),
}


def inputs(name: str) -> list[Path]:
    """The corpus of a target."""
    return sorted((CORPUS / name).iterdir())
