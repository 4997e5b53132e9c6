"""The facts' own few words."""

from controller.doctor.facts import FamilyFacts
from controller.model import Family


def test_what_wireguard_adds() -> None:
    assert FamilyFacts(Family.IPV4, "wg", 1, 2, 3, 4).overhead == 60
    assert FamilyFacts(Family.IPV6, "wg", 1, 2, 3, 4).overhead == 80
