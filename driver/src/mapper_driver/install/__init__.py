"""Puts the driver's files in place for OpenNebula and for the node, and takes exactly those away again."""
