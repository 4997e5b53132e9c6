"""controller: the node agent, which turns a cluster's objects into the WireGuard mesh of one node.

The agent is level-triggered. Whatever woke it, it looks at everything again, works out how things ought to be, reads how
they are, and applies the difference: nothing is remembered that can be read back. From pure to impure:

==================  ==============================================================================================
:mod:`.calico`      what Calico calls things: annotations, fields, defaults
:mod:`.model`       the cluster as values: nodes, blocks, pools, Felix's configuration
:mod:`.observe`     Kubernetes objects -> cluster, and the problems found on the way
:mod:`.state`       one family's state on one node as a value, wanted or found: link, addresses, routes, rules, device
:mod:`.desired`     cluster -> the state a node ought to be in
:mod:`.plan`        (desired, actual) -> steps, in an order in which nothing leaks and nothing goes to the wrong peer
:mod:`.publication` when to publish or withdraw this node's public key
------------------  ----------------------------------------------------------------------------------------------
:mod:`.source`      where objects come from: the interface
:mod:`.directory`   a source that is a directory of YAML files
:mod:`.netlink`     the kernel: reads and changes links, addresses, routes and rules
:mod:`.masquerade`  the one nftables rule
:mod:`.apply`       reads a state back, applies steps
:mod:`.statefiles`  what the agent keeps on disk: private keys, assigned endpoints, its lock
:mod:`.dataplane`   starting a data plane (``--spawn``)
:mod:`.instance`    one family of one node: observe, plan, apply once
:mod:`.agent`       the loop around the instances: wake, reconcile, back off, publish
:mod:`.cli`         ``wgpy agent`` and ``wgpy leave``
:mod:`.allocator`   a stand-in for Calico's tunnel-address allocator, for demo and tests
==================  ==============================================================================================
"""
