"""Where the page is served. tests/web starts it."""

from pathlib import Path

import pytest

from controller.dashboard.server import Address, Tls


@pytest.mark.parametrize(
    ("address", "url"),
    [
        (Address("127.0.0.1", 9591), "http://127.0.0.1:9591"),
        (Address("::1", 9591), "http://[::1]:9591"),
        (Address("192.0.2.7", 443, Path("token"), Tls(Path("c"), Path("k"))), "https://192.0.2.7:443"),
    ],
)
def test_the_address_to_open(address: Address, url: str) -> None:
    assert address.url == url
