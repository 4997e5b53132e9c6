"""One target under atheris, which is libFuzzer for Python: ``python -m tests.fuzz.engine TARGET [OPTION...] [FOLDER...]``.

Options and folders are libFuzzer's. The packages under test are instrumented as they are imported: each branch taken, and the
operands of each comparison, tell it which inputs are worth keeping. It leaves the process by itself: with status 0 when its
time is up, with another one after a finding.
"""

import shlex
import sys

import atheris

with atheris.instrument_imports(include=["controller", "noise", "tun", "wgpy"]):
    from tests.fuzz.targets import TARGETS

if __name__ == "__main__":
    name, *options = sys.argv[1:]
    target = TARGETS[name]
    # libFuzzer starts itself again to minimise a corpus, by these words and a shell.
    command = shlex.join([sys.executable, "-m", "tests.fuzz.engine", name])
    atheris.Setup([command, f"-max_len={target.longest}", *options], target.check)
    atheris.Fuzz()
