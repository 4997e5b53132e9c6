"""What runs inside the guest: it does what the host asks for, many things at a time (``python guest.py PORT``).

PORT is a virtio port. A request is a line of JSON, and so is its answer, which has the same ``id``:

    run      argv, namespace ("" for the guest's own), input, timeout (seconds)    status, stdout, stderr; or late
    netlink  namespace, messages (in base64, generic netlink, in this order)        errno (0 for none), answers (in base64)
    clock    nanoseconds since 1970, or 0 to leave it alone                         nanoseconds since 1970, afterwards

Everything here is emulated, so this imports little and does little: what the bytes of netlink mean is the host's business. Each
request has a thread of its own, so that one can enter a network namespace without taking the others along.
"""

from __future__ import annotations

import base64
import ctypes
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable

Message = dict[str, object]

NETLINK_GENERIC = 16
NLMSG_ERROR, NLMSG_DONE = 2, 3
CLONE_NEWNET = 0x40000000
RECEIVE_SIZE = 1 << 16
ANSWER_SECONDS = 10.0

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port


def run(argv: list[str], namespace: str, input: str, timeout: float) -> Message:
    command = ["ip", "netns", "exec", namespace, *argv] if namespace else argv
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        return {"status": 127, "stdout": "", "stderr": str(error)}
    try:
        stdout, stderr = process.communicate(input, timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return {"late": True}
    return {"status": process.returncode, "stdout": stdout, "stderr": stderr}


def netlink(namespace: str, messages: list[str]) -> Message:
    """Send them one after the other, until one is refused."""
    _enter(namespace)
    answers: list[str] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_GENERIC) as kernel:
        kernel.settimeout(ANSWER_SECONDS)
        for message in messages:
            kernel.send(base64.b64decode(message))
            if errno := _receive(kernel, answers):
                return {"errno": errno, "answers": answers}
    return {"errno": 0, "answers": answers}


def _receive(kernel: socket.socket, answers: list[str]) -> int:
    """Add the bodies of the answers to one message. Gives the errno that it was refused with, 0 if it was not."""
    while True:
        datagram = kernel.recv(RECEIVE_SIZE)
        offset = 0
        while offset + _HEADER.size <= len(datagram):
            length, kind, *_ = _HEADER.unpack_from(datagram, offset)
            body = datagram[offset + _HEADER.size : offset + length]
            if kind in (NLMSG_ERROR, NLMSG_DONE):
                return -int.from_bytes(body[:4], sys.byteorder, signed=True)
            answers.append(base64.b64encode(body).decode())
            offset += max(_HEADER.size, length + 3 & ~3)


def _enter(namespace: str) -> None:
    with open(f"/run/netns/{namespace}") as there:
        if ctypes.CDLL(None, use_errno=True).setns(there.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")


def clock(nanoseconds: int) -> Message:
    if nanoseconds:
        time.clock_settime_ns(time.CLOCK_REALTIME, nanoseconds)
    return {"nanoseconds": time.time_ns()}


OPERATIONS: dict[str, Callable[..., Message]] = {"run": run, "netlink": netlink, "clock": clock}


def main(port: str) -> None:
    wire = os.open(port, os.O_RDWR)  # it can be opened but once
    lock = threading.Lock()

    def say(answer: Message) -> None:
        line = memoryview(json.dumps(answer).encode() + b"\n")
        with lock:
            while line:
                line = line[os.write(wire, line) :]

    def serve(id: int, operation: str, arguments: Message) -> None:
        try:
            say({"id": id, **OPERATIONS[operation](**arguments)})
        except Exception as error:  # the host has to hear of it, whatever it is
            say({"id": id, "error": f"{type(error).__name__}: {error}"})

    say({"id": 0})
    with os.fdopen(wire, "rb", closefd=False) as requests:
        for line in requests:
            request = json.loads(line)
            threading.Thread(target=serve, args=(request["id"], request["operation"], request["arguments"])).start()


if __name__ == "__main__":
    main(sys.argv[1])
