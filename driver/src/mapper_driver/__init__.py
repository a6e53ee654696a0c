"""OpenNebula's driver for containers of LXD and Incus on disk images; see the README of this distribution."""
