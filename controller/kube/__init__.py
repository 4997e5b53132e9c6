"""The cluster as a Kubernetes API server has it: a :class:`controller.source.Source`.

`source` is what the agent holds; it has one `reflector` for each kind of object, all on one `connection`; `events` decides what
becomes of what the agent tells. Nothing else of this project imports the kubernetes package, and here only `connection` does.
"""

from controller.kube.source import KubernetesSource

__all__ = ["KubernetesSource"]
