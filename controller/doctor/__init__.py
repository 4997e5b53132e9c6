"""``wgpy doctor``: what is wrong on this node, why it matters, and the command that mends it.

Looking and judging are two things. :mod:`.collect` looks: it reads the cluster, the kernel, the device and the firewall, sends a
few datagrams (:mod:`.probe`) and changes nothing. What it has seen is one value (:mod:`.facts`). :mod:`.checks` judges that
value (:mod:`.host_checks`, :mod:`.family_checks`), and so does :mod:`.firewall` with a ruleset; they are pure. What they find is
a :mod:`.diagnosis`. :mod:`.remedies` has the commands for what the agent itself finds in the cluster
(:mod:`controller.findings`). :mod:`.command` says it all to people and programs.
"""
