"""`stoq doctor`: what this machine, its interfaces and the nodes on it can do, and what would be faster.

finding.py    what a probe says: a verdict, a fact, an advice
system.py     /proc, /sys and the process's rights, as the probes read them
host.py       one small class a fact of the host
link.py       an interface's facts, collected once: netlink, ethtool, sysfs, the XDP probe
interface.py  one small class a fact of an interface
nodes.py      running nodes: does every AF_XDP frame have exactly one owner?
command.py    the command

Nothing is changed: what has to be tried (a ring, an XDP program that passes everything) is gone before the
answer.
"""
