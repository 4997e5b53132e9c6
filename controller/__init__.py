"""controller: the node agent, which turns a cluster's objects into the WireGuard mesh of one node.

The agent is level-triggered. Whatever woke it, it looks at everything again, works out how things ought to be, reads how
they are, and applies the difference: nothing is remembered that can be read back. From pure to impure:

==================  ==============================================================================================
:mod:`.model`       the cluster as values: nodes, blocks, pools, Felix's configuration
:mod:`.observe`     how objects are read field by field, and the problems found on the way
:mod:`.mesh`        what makes a mesh: objects -> cluster, and a key -> annotations
:mod:`.meshes`      the meshes: Calico (with Felix's configuration and Calico's selectors), Flannel, Cilium
:mod:`.findings`    what is wrong in the cluster, and what to do about it
:mod:`.state`       one family's state on one node as a value, wanted or found: link, addresses, routes, rules, device
:mod:`.desired`     cluster -> the state a node ought to be in
:mod:`.plan`        (desired, actual) -> steps, in an order in which nothing leaks and nothing goes to the wrong peer
:mod:`.publication` when to publish or withdraw this node's public key
:mod:`.status`      what the agent is doing and what has come of it, as a value; the history is made of two of them
:mod:`.graph`       the mesh as a picture: SVG, graphviz, Mermaid
------------------  ----------------------------------------------------------------------------------------------
:mod:`.source`      where objects come from: the interface
:mod:`.directory`   a source that is a directory of YAML files
:mod:`.kube`        a source that is an API server
:mod:`.netlink`     the kernel: reads and changes links, addresses, routes and rules
:mod:`.masquerade`  the one nftables rule of every mode
:mod:`.guard`       strict mode's nftables table
:mod:`.flanneld`    what flanneld does besides, where the agent is in its place
:mod:`.apply`       reads a state back, applies steps
:mod:`.statefiles`  what the agent keeps on disk: private keys, assigned endpoints, objects, status, its lock
:mod:`.external`    peers that are no nodes
:mod:`.dataplane`   starting a data plane (``--spawn``)
:mod:`.instance`    one family of one node: observe, plan, apply once
:mod:`.agent`       the loop around the instances: wake, reconcile, back off, publish
:mod:`.reporter`    status, history, Events: what the agent says of itself
:mod:`.entries`     what happened between two statuses, as entries of the history; pure
:mod:`.history`     what happened, a line each, on disk
:mod:`.compliance`  ``wgpy report``: what the history proves, signed, for auditors
:mod:`.metrics`     the same for Prometheus, and the probes
:mod:`.look`        how commands show what they see: one look, or with ``--watch`` many
:mod:`.mesh_table`  the same for people: ``wgpy mesh``
:mod:`.top`         the same, live: ``wgpy top``
:mod:`.doctor`      what is wrong on a node and what to type: facts, pure checks over them, ``wgpy doctor``
:mod:`.verify`      marked packets and a look at the wire: ``wgpy verify``
:mod:`.completion`  completion for shells, made from the commands' parsers
:mod:`.cli`         ``wgpy agent``, ``leave``, ``mesh``, ``top``, ``doctor`` and ``verify``
:mod:`.allocator`   a stand-in for Calico's tunnel-address allocator, for demo and tests
==================  ==============================================================================================
"""
