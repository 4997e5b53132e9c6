"""The WireGuard protocol of one peer, pure: no socket, clock, loop, file or randomness.

``now`` is an argument everywhere: seconds, a float, from a clock that goes on during suspend. Random bytes, ephemeral
keys and timestamps are arguments too, so every message can be computed twice and compared. Nothing here knows about
IP packets, UDP or peers in the plural; the device around it does.

To check this package against the whitepaper (Donenfeld, "WireGuard: Next Generation Kernel Network Tunnel"), read:

======================================================  ==========================================================
paper                                                   module
======================================================  ==========================================================
5.1   Silence is a virtue (replayed initiations)        :mod:`noise.tai64n`, ``handshake.LatestInitiation``
5.2   Optional pre-shared symmetric key mode            :mod:`noise.handshake`, token psk
5.3   Denial of service mitigation and cookies          :mod:`noise.cookie`, :mod:`noise.ratelimiter`
5.4   Messages: layout of the four                      :mod:`noise.messages`
5.4.1 Protocol overview: DH, HASH, MAC, KDF, AEAD       :mod:`noise.crypto`, :mod:`noise.constants`
5.4.2 First message: initiator to responder             ``handshake.create_initiation``, ``consume_initiation``
5.4.3 Second message: responder to initiator            ``handshake.create_response``, ``consume_response``
5.4.4 Cookie MACs                                       ``cookie.CookieHolder.add_macs``
5.4.5 Transport data key derivation                     the end of :mod:`noise.handshake`, :mod:`noise.keypair`
5.4.6 Subsequent messages: transport data               :mod:`noise.transport`, :mod:`noise.replay`
5.4.7 Under load: cookie reply message                  ``cookie.CookieChecker``, ``CookieHolder.consume_reply``
6.1   Preliminaries: the constants                      :mod:`noise.constants`
6.2   Transport message limits                          :mod:`noise.keypair`, ``transport.seal``, ``replay``
6.3   Key rotation                                      ``keypair.Keypairs``
6.4   Handshake initiation retransmission               :mod:`noise.timers`
6.5   Passive keepalive                                 :mod:`noise.timers`
6.6   Interaction with cookie reply system              :mod:`noise.cookie` (a reply causes no resend)
======================================================  ==========================================================

Where the paper leaves a choice, or the kernel's implementation differs from it, we do as the kernel does and say so.
"""
