"""The paragraphs that a report is made for, in our own words, and which topics of evidence bear on each. Pure.

A report says what a node's record shows and which paragraph that bears on. Whether a paragraph is met is for the assessor, who
sees what no record of a network can: where the data is, which networks are open, what the risk is. The wording here is a summary;
the standards themselves count. Articles about encryption in Kubernetes often name older paragraphs, so each framework says what
became of them.
"""

from dataclasses import dataclass
from enum import Enum


class Topic(Enum):
    """What a statement is about."""

    RECORD = "record"
    ENCRYPTED = "encrypted"
    CLEAR = "clear"
    REFUSED = "refused"
    STRICT = "strict mode"
    KEYS = "keys"
    KEY_INCIDENTS = "key incidents"
    SESSIONS = "sessions"
    LEAKS = "leaks"
    CONFIGURATION = "configuration"
    ALGORITHMS = "algorithms"
    FIPS = "FIPS"


@dataclass(frozen=True, slots=True)
class Requirement:
    """A paragraph: its number, what it asks for in short, and the topics that bear on it."""

    id: str
    text: str
    topics: frozenset[Topic]


@dataclass(frozen=True, slots=True)
class Framework:
    """``name`` with its version; ``remarks`` are said in every report."""

    id: str
    name: str
    requirements: tuple[Requirement, ...]
    remarks: tuple[str, ...]


_TRAFFIC = (Topic.RECORD, Topic.ENCRYPTED, Topic.CLEAR, Topic.REFUSED, Topic.LEAKS)


def _requirement(number: str, text: str, *topics: Topic) -> Requirement:
    return Requirement(number, text, frozenset(topics))


FRAMEWORKS = {
    framework.id: framework
    for framework in (
        Framework(
            "pci-dss",
            "PCI DSS 4.0.1",
            (
                _requirement(
                    "PCI DSS 4.2.1",
                    "Cardholder account numbers are protected with strong cryptography and security protocols while they are "
                    "transmitted over open, public networks.",
                    *_TRAFFIC,
                    Topic.ALGORITHMS,
                    Topic.FIPS,
                ),
                _requirement(
                    "PCI DSS 4.2.1, trusted keys",
                    "Only trusted keys and certificates are accepted, and certificates are valid.",
                    Topic.RECORD,
                    Topic.KEYS,
                    Topic.KEY_INCIDENTS,
                ),
                _requirement(
                    "PCI DSS 4.2.1, no fallback",
                    "The protocol supports only secure versions and configurations, without fallback to insecure ones.",
                    Topic.RECORD,
                    Topic.STRICT,
                    Topic.CLEAR,
                    Topic.ALGORITHMS,
                    Topic.CONFIGURATION,
                ),
                _requirement(
                    "PCI DSS 4.2.1, strength",
                    "The strength of the encryption suits the method in use.",
                    Topic.ALGORITHMS,
                    Topic.SESSIONS,
                ),
                _requirement(
                    "PCI DSS 4.2.1.1",
                    "An inventory is kept of the trusted keys and certificates that protect the transmission.",
                    Topic.RECORD,
                    Topic.KEYS,
                ),
            ),
            (
                "Articles that cite PCI DSS section 4.1 for encryption in transit mean version 3.2.1, which was retired on "
                "31 March 2024. In version 4.0.1 requirement 4.1 is about documented processes, and 4.2.1 about the "
                "transmission.",
                "Whether the network between the nodes is open or public, and whether account numbers cross it, is for the "
                "assessor.",
                "WireGuard uses no certificates. Nodes trust the public keys that the cluster's Node objects carry: who may "
                "write these decides which keys are trusted.",
                "PCI DSS asks for strong cryptography by strength and acceptance, and does not itself ask for FIPS validation.",
            ),
        ),
        Framework(
            "hipaa",
            "HIPAA Security Rule, 45 CFR 164.312(e)",
            (
                _requirement(
                    "45 CFR 164.312(e)(1)",
                    "Technical measures guard electronic protected health information against unauthorized access while it is "
                    "transmitted over a network.",
                    *_TRAFFIC,
                    Topic.STRICT,
                    Topic.CONFIGURATION,
                ),
                _requirement(
                    "45 CFR 164.312(e)(2)(i)",
                    "Integrity controls (addressable): what is transmitted is not modified unnoticed.",
                    Topic.RECORD,
                    Topic.ENCRYPTED,
                    Topic.CLEAR,
                    Topic.KEYS,
                    Topic.KEY_INCIDENTS,
                    Topic.ALGORITHMS,
                ),
                _requirement(
                    "45 CFR 164.312(e)(2)(ii)",
                    "Encryption (addressable): there is a mechanism to encrypt the information wherever that is appropriate.",
                    *_TRAFFIC,
                    Topic.ALGORITHMS,
                    Topic.SESSIONS,
                    Topic.FIPS,
                ),
            ),
            (
                "Articles that cite 164.312(c) for encryption in transit name the standard for the integrity of stored "
                "information. Transmission is 164.312(e).",
                "Addressable does not mean optional: the covered entity documents what it does, and why.",
                "The guidance of HHS on unsecured information (74 FR 19006) counts data in motion as secured where the "
                "encryption follows NIST SP 800-52, 800-77 or 800-113, or is otherwise validated to FIPS 140-2. WireGuard is "
                "not: do not rely on it alone for the exemption from breach notification.",
            ),
        ),
        Framework(
            "gdpr",
            "GDPR (Regulation (EU) 2016/679), Article 32",
            (
                _requirement(
                    "GDPR Art. 32(1)(a)",
                    "Encryption of personal data, as the risk calls for it.",
                    *_TRAFFIC,
                    Topic.ALGORITHMS,
                    Topic.SESSIONS,
                    Topic.FIPS,
                ),
                _requirement(
                    "GDPR Art. 32(1)(b)",
                    "Lasting confidentiality, integrity, availability and resilience of the systems that process the data.",
                    Topic.RECORD,
                    Topic.STRICT,
                    Topic.CLEAR,
                    Topic.REFUSED,
                    Topic.KEYS,
                    Topic.KEY_INCIDENTS,
                    Topic.CONFIGURATION,
                ),
                _requirement(
                    "GDPR Art. 32(1)(d)",
                    "Regular tests and assessments of how effective the measures are.",
                    Topic.RECORD,
                    Topic.LEAKS,
                ),
            ),
            (
                "Articles about encryption in Kubernetes give the wording of Article 32 under the name of PCI DSS, or name the "
                "regulation without an article. Security of processing is Article 32.",
                "Article 32 asks for what suits the risk and the state of the art; which measures do is for the controller to "
                "say.",
            ),
        ),
    )
}
"""By the name that the command line knows."""
