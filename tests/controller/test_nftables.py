"""nft, in a namespace of its own and where there is none."""

import pytest

from controller.model import Family
from controller.nftables import NftablesRefusal, load, read_table, remove_table
from tests.controller.lab import may_make_namespaces
from tests.controller.namespace import in_new_namespace


@pytest.mark.e2e
@pytest.mark.skipif(not may_make_namespaces(), reason="needs root")
@pytest.mark.parametrize("family", list(Family))
def test_a_table_comes_whole_or_not_at_all_and_goes_whole(family: Family) -> None:
    name = "ip" if family is Family.IPV4 else "ip6"

    def body() -> None:
        remove_table(family, "wgtest")  # nothing there
        assert read_table(family, "wgtest") == []
        with pytest.raises(NftablesRefusal, match=r"^nft: .*syntax error"):
            load(f"table {name} wgtest {{ chain good {{ }}\nchain bad {{ nonsense }}\n}}\n")
        assert read_table(family, "wgtest") == []
        load(f"table {name} wgtest {{\nchain good {{ }}\n}}\n")
        assert [item["chain"]["name"] for item in read_table(family, "wgtest") if "chain" in item] == ["good"]
        remove_table(family, "wgtest")
        assert read_table(family, "wgtest") == []

    in_new_namespace(body)


def test_without_nft_there_is_nothing_to_read_and_a_reason_not_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name, path=None: None)

    assert read_table(Family.IPV4, "wgtest") == []
    with pytest.raises(NftablesRefusal, match=r"^there is no nft on this host$"):
        load("")


def test_an_nft_that_hangs_is_a_refusal(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setattr("shutil.which", lambda name, path=None: "/bin/sleep")
    monkeypatch.setattr("controller.nftables._SECONDS", 0.1)

    with pytest.raises(NftablesRefusal):
        remove_table(Family.IPV4, "wgtest")  # sleep knows no such options
