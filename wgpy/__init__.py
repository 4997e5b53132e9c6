"""wgpy: a WireGuard data plane in Python.

What is where, from the inside out: :mod:`wgpy.config` has the values everybody speaks in; :mod:`wgpy.uapi` and
:mod:`wgpy.wgconf` turn them into text and back; :mod:`wgpy.core` is the device without I/O; :mod:`wgpy.daemon` gives it a
TUN, sockets and a clock; :mod:`wgpy.client` talks to a running one; :mod:`wgpy.cli` is the command.
"""

__version__ = "0.1.0"
