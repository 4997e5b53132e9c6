"""The device without I/O: what a WireGuard interface knows and decides.

:mod:`~wgpy.core.device` owns the peers and answers to configuration, handshakes and deadlines. The data path stands in
two modules, one a direction: :mod:`~wgpy.core.outbound` (packets to datagrams) and :mod:`~wgpy.core.inbound` (datagrams to
packets). Nothing here has a socket, a clock or randomness of its own: ``now`` comes with every call, and what must
leave goes to the :class:`~wgpy.core.device.Outputs` handed in at construction.
"""
