"""Consoles: a terminal in the container, shown by VNC on the port that OpenNebula has chosen.

One server of the node listens on the ports of all machines. Each viewer gets a session of its own: an X server for that one
connection (TigerVNC's Xvnc), a terminal in it (xterm), and in the terminal the machine's command, started by the daemon's own
client. What talks to the network, and what reads what the guest writes, has a user id of its own and no privileges.

- :mod:`~mapper_driver.console.definition`: what a machine's console is, kept in a file.
- :mod:`~mapper_driver.console.control`: what the actions call.
- :mod:`~mapper_driver.console.server`: listens.
- :mod:`~mapper_driver.console.viewer`: one session.
"""
