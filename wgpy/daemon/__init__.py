"""The process around a device: the only place with sockets, a loop and a clock. It moves bytes and decides nothing."""
