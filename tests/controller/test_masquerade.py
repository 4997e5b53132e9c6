"""The one nftables rule, in a real namespace."""

import subprocess

import pytest

from controller.masquerade import MasqueradeUnavailable, masquerade, masqueraded_interface, stop_masquerading
from controller.model import Family
from tests.controller.lab import may_make_namespaces
from tests.controller.namespace import in_new_namespace


@pytest.mark.e2e
@pytest.mark.skipif(not may_make_namespaces(), reason="needs root")
@pytest.mark.parametrize("family", list(Family))
def test_the_rule_is_for_one_interface_and_goes_as_a_whole(family: Family) -> None:
    def body() -> None:
        stop_masquerading(family)  # nothing there
        assert masqueraded_interface(family) is None
        for name in ("wireguard.caliu", "wireguard.caliu", "wg-v6.caliu"):
            masquerade(family, name)
            assert masqueraded_interface(family) == name
        assert masqueraded_interface(Family.IPV4 if family is Family.IPV6 else Family.IPV6) is None
        ruleset = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout
        assert ruleset.count("masquerade") == 1
        stop_masquerading(family)
        assert masqueraded_interface(family) is None

    in_new_namespace(body)


def test_without_nft_the_feature_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name, path=None: None)

    assert masqueraded_interface(Family.IPV4) is None
    with pytest.raises(MasqueradeUnavailable, match=r"^there is no nft on this host$"):
        masquerade(Family.IPV4, "wireguard.caliu")
