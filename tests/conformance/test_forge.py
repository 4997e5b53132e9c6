"""Forged handshake messages are what honest ones are, but for the keys: else they would be refused for another reason."""

import os

import pytest

from noise.crypto import dh, public_key
from noise.handshake import LocalStatic, RemoteStatic, consume_initiation, create_initiation, create_response
from noise.tai64n import timestamp
from tests.conformance import forge

STAMP = timestamp(10**18)


def test_with_true_keys_they_are_the_true_messages() -> None:
    initiator, responder = LocalStatic(os.urandom(32)), LocalStatic(os.urandom(32))
    there, back = RemoteStatic(initiator, responder.public), RemoteStatic(responder, initiator.public)
    ephemeral, preshared = os.urandom(32), os.urandom(32)

    initiation, _ = create_initiation(initiator, there, ephemeral, 7, STAMP)
    shared, secret = dh(ephemeral, responder.public), there.static_static
    made = forge.initiation(
        responder.public, public_key(ephemeral), initiator.public, es=shared, ss=secret, timestamp=STAMP, index=7
    )
    assert made == initiation

    consumed = consume_initiation(responder, initiation, {initiator.public: back}.get)
    response, _ = create_response(back, consumed, preshared, ephemeral, 9)
    ee, se = dh(ephemeral, consumed.remote_ephemeral), dh(ephemeral, initiator.public)
    assert forge.response(consumed, public_key(ephemeral), ee=ee, se=se, preshared=preshared, index=9) == response


@pytest.mark.parametrize("point", forge.LOW_ORDER_POINTS, ids=lambda point: point.hex()[:8])
def test_whoever_uses_a_point_of_low_order_gets_zero(point: bytes) -> None:
    assert dh(os.urandom(32), point) == forge.ZERO
