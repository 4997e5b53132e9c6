"""``python -m controller agent ...``: for a checkout in which ``wgpy`` is not installed."""

import sys

from controller.cli import agent, doctor, leave, mesh, top, verify

COMMANDS = {"agent": agent, "doctor": doctor, "leave": leave, "mesh": mesh, "top": top, "verify": verify}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        sys.exit(f"usage: python -m controller {'|'.join(COMMANDS)} [OPTION]...")
    sys.exit(COMMANDS[sys.argv[1]](sys.argv[2:]))
