"""The frameworks, as the command line and the report know them."""

import pytest

from controller.compliance.requirements import FRAMEWORKS, Framework, Topic


@pytest.mark.parametrize("framework", FRAMEWORKS.values(), ids=FRAMEWORKS)
def test_each_requirement_has_a_number_of_its_own_and_something_that_bears_on_it(framework: Framework) -> None:
    assert len({one.id for one in framework.requirements}) == len(framework.requirements)
    assert all(one.topics and one.text for one in framework.requirements)
    topics = {topic for one in framework.requirements for topic in one.topics}
    assert topics >= {Topic.RECORD, Topic.ENCRYPTED, Topic.CLEAR, Topic.STRICT, Topic.KEYS, Topic.LEAKS, Topic.FIPS}
    assert any("rticles" in remark for remark in framework.remarks), "what became of the paragraphs that others cite"


def test_the_paragraphs() -> None:
    ids = [one.id for framework in FRAMEWORKS.values() for one in framework.requirements]

    assert set(FRAMEWORKS) == {"pci-dss", "hipaa", "gdpr"} and "4.0.1" in FRAMEWORKS["pci-dss"].name
    assert {"PCI DSS 4.2.1", "45 CFR 164.312(e)(1)", "45 CFR 164.312(e)(2)(ii)", "GDPR Art. 32(1)(a)"} <= set(ids)
