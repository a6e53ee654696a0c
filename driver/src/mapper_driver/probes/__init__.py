"""What OpenNebula's monitoring agent runs on a node: the probes of ``im/lxd-probes.d``."""
