"""``wgpy demo``: a cluster on this machine, its traffic, and the proof of what was encrypted.

From the floor up: :mod:`.topology` lays nodes and pods as network namespaces, :mod:`.manifests` has the cluster's objects,
:mod:`.cluster` puts processes on the nodes and knows what the mesh promises, :mod:`.traffic` and :mod:`.capture` make and judge
packets, :mod:`.steps` tells the story and :mod:`.report` says it. End-to-end tests and benchmarks use the lower ones too.
"""

from controller.demo.command import main

__all__ = ["main"]
