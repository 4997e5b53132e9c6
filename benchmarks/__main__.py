"""``python -m benchmarks [NAME] [OPTIONS]``: run one of the benchmarks, ``seam`` where none is named."""

import sys
from importlib import import_module

BENCHMARKS = {
    "seam": "TCP and UDP between two pods through a pair of data planes (root)",
    "datapath": "microseconds per batch inside the device, without sockets",
}


def main() -> int:
    arguments = sys.argv[1:]
    if arguments[:1] in (["--help"], ["-h"], ["help"]):
        print(__doc__)
        for name, text in BENCHMARKS.items():
            print(f"  {name:10} {text}")
        return 0
    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "seam"
    if name not in BENCHMARKS:
        print(f"benchmarks: there is no benchmark {name!r}; there are: {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    sys.argv[:] = [f"python -m benchmarks {name}", *arguments]
    status: int = import_module(f"benchmarks.{name}").main()
    return status


if __name__ == "__main__":
    sys.exit(main())
