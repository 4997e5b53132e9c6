"""``python -m benchmarks [OPTIONS]`` runs the suite, ``python -m benchmarks NAME [OPTIONS]`` one of the benchmarks.

--kernel-vm [OPTIONS]   the suite inside a qemu guest, which has the kernel's own WireGuard: emulated
"""

import sys
from importlib import import_module

from controller.demo.topology import TopologyError

BENCHMARKS = {
    "suite": "everything: data planes against each other (root); the default",
    "seam": "TCP and UDP between two pods through a pair of data planes (root)",
    "micro": "microseconds per batch inside the device, against a committed baseline",
    "handshakes": "handshakes answered per second, and the CPU of each (root)",
    "scale": "what thousands of peers and prefixes cost (root)",
}


def main() -> int:
    arguments = sys.argv[1:]
    if arguments[:1] in (["--help"], ["-h"], ["help"]):
        print(__doc__)
        for name, text in BENCHMARKS.items():
            print(f"  {name:10} {text}")
        print()
    if "--kernel-vm" in arguments:
        arguments.remove("--kernel-vm")
        module = "kernel_vm"
    else:
        module = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "suite"
        if module not in BENCHMARKS:
            print(f"benchmarks: there is no benchmark {module!r}; there are: {', '.join(BENCHMARKS)}", file=sys.stderr)
            return 2
    sys.argv[:] = [f"python -m benchmarks {module}", *arguments]
    try:
        status: int = import_module(f"benchmarks.{module}").main()
    except TopologyError as error:
        hint = ": root with CAP_NET_ADMIN is needed" if "not permitted" in str(error) else ""
        print(f"benchmarks: {error}{hint}", file=sys.stderr)
        return 2
    return status


if __name__ == "__main__":
    sys.exit(main())
