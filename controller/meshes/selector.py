"""Calico's selectors, over labels: ``has(role) && zone in {"a", "b"}``. Pure.

    or        = and { "||" and }
    and       = not { "&&" not }
    not       = { "!" } term
    term      = "(" or ")" | "all()" | "global()" | "has(" label ")" | label operation
    operation = ("==" | "!=" | "contains" | "starts with" | "ends with") string | ["not"] "in" "{" {string ","} [string] "}"

A label that is missing differs from every value and is in no set: ``!=`` and ``not in`` are true of it. Strings have single or
double quotes and no escapes. Source: ``lib/selector`` of libcalico-go.
"""

import re
from collections.abc import Callable, Mapping
from functools import lru_cache

Labels = Mapping[str, str]
Selector = Callable[[Labels], bool]

LONGEST = 4096
"""Characters; a longer one is refused, as is one that nests more than :data:`DEEPEST` parentheses."""
DEEPEST = 32

_TOKEN = re.compile(
    r"""[ \t]*(?:
    (?P<string>"[^"]*"|'[^']*')
    |(?P<call>(?:all|global)\([ \t]*\)|has\([ \t]*[a-zA-Z0-9_./-]{1,512}[ \t]*\))
    |(?P<word>[a-zA-Z0-9_./-]{1,512})
    |(?P<sign>==|!=|&&|\|\||[!(){},])
    )""",
    re.VERBOSE,
)
_OPERATION = re.compile(r"[ \t]*(==|!=|contains|starts[ \t]*with|ends[ \t]*with|not[ \t]*in|in)")


def parse_selector(text: object) -> Selector:
    """What tells whether labels match. An empty selector matches everything. Raises ValueError."""
    if not isinstance(text, str) or len(text) > LONGEST:
        raise ValueError(f"not a selector: a string of at most {LONGEST} characters is needed")
    return _parse(text)


@lru_cache
def _parse(text: str) -> Selector:
    if not text.strip(" \t"):
        return lambda labels: True
    parser = _Parser(text)
    selector = parser.either()
    if parser.rest:
        raise parser.error("an operator or the end")
    return selector


class _Parser:
    """What is still to be read, and how to read one more of it."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0
        self._depth = 0

    @property
    def rest(self) -> str:
        return self._text[self._position :].lstrip(" \t")

    def error(self, expected: str) -> ValueError:
        found = repr(self.rest[:20]) if self.rest else "the end"
        return ValueError(f"not a selector such as has(role) && zone == 'a': expected {expected}, found {found}")

    def either(self) -> Selector:
        terms = [self._both()]
        while self._take("||"):
            terms.append(self._both())
        return terms[0] if len(terms) == 1 else lambda labels: any(term(labels) for term in terms)

    def _both(self) -> Selector:
        terms = [self._negated()]
        while self._take("&&"):
            terms.append(self._negated())
        return terms[0] if len(terms) == 1 else lambda labels: all(term(labels) for term in terms)

    def _negated(self) -> Selector:
        is_negated = False
        while self._take("!"):
            is_negated = not is_negated
        term = self._term()
        return (lambda labels: not term(labels)) if is_negated else term

    def _term(self) -> Selector:
        if self._take("("):
            self._depth += 1
            if self._depth > DEEPEST:
                raise self.error(f"at most {DEEPEST} parentheses inside each other")
            inner = self.either()
            self._need(")")
            self._depth -= 1
            return inner
        if call := self._match("call"):
            function, _, argument = call.removesuffix(")").partition("(")
            return _call(function, argument.strip(" \t"))
        if label := self._match("word"):
            return self._operation(label)
        raise self.error("a label, has(...), all() or a parenthesis")

    def _operation(self, label: str) -> Selector:
        found = _OPERATION.match(self._text, self._position)
        if found is None:
            raise self.error(f"an operator after {label}")
        self._position = found.end()
        name = re.sub(r"[ \t]", "", found[1])
        return _set_operation(name, label, self._set()) if name in ("in", "notin") else _operation(name, label, self._string())

    def _set(self) -> frozenset[str]:
        self._need("{")
        values = set()
        while not self._take("}"):
            values.add(self._string())
            if not self._take(","):
                self._need("}")
                break
        return frozenset(values)

    def _string(self) -> str:
        if (string := self._match("string")) is None:
            raise self.error("a string in quotes")
        return string[1:-1]

    def _need(self, sign: str) -> None:
        if not self._take(sign):
            raise self.error(sign)

    def _take(self, sign: str) -> bool:
        found = _TOKEN.match(self._text, self._position)
        if found is None or found["sign"] != sign:
            return False
        self._position = found.end()
        return True

    def _match(self, group: str) -> str | None:
        found = _TOKEN.match(self._text, self._position)
        if found is None or found[group] is None:
            return None
        self._position = found.end()
        return found[group]


def _call(function: str, label: str) -> Selector:
    if function == "has":
        return lambda labels: label in labels
    return lambda labels: True  # global() tells endpoints of namespaces from others, and a node is in none


def _operation(name: str, label: str, value: str) -> Selector:
    if name == "==":
        return lambda labels: labels.get(label) == value
    if name == "!=":
        return lambda labels: labels.get(label) != value
    if name == "contains":
        return lambda labels: value in labels.get(label, "") and label in labels
    if name == "startswith":
        return lambda labels: label in labels and labels[label].startswith(value)
    return lambda labels: label in labels and labels[label].endswith(value)


def _set_operation(name: str, label: str, values: frozenset[str]) -> Selector:
    if name == "in":
        return lambda labels: labels.get(label) in values
    return lambda labels: labels.get(label) not in values
