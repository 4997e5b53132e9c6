"""Objects with a few things in them that nobody would write: for the promise that no object makes a mesh raise."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from hypothesis import strategies as st

from tests.controller.cluster import Manifest

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 70000)
    | st.text(max_size=8)
    | st.sampled_from(["10.9.0.1/24", "10.9.0.1", "fd00::1", "null", "{}", '{"Port":1}', "[" * 5000]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def paths_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, child in inner for found in paths_in(child, (*path, key)))]


def mangled(data: st.DataObject, manifests: Sequence[Manifest]) -> list[Manifest]:
    """Copies of ``manifests``, in each of which up to two values are anything. Each keeps its kind and its name."""
    copies = deepcopy(list(manifests))
    for manifest in copies:
        identity = (manifest["kind"], manifest["metadata"]["name"])
        for _ in range(data.draw(st.integers(0, 2))):
            path = data.draw(st.sampled_from([path for path in paths_in(manifest) if path and path[0] != "kind"]))
            target = manifest
            for key in path[:-1]:
                target = target[key]
            target[path[-1]] = data.draw(json_values)
        if not isinstance(manifest.get("metadata"), dict):
            manifest["metadata"] = {}
        manifest["kind"], manifest["metadata"]["name"] = identity
    return copies
