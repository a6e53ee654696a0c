"""LXD and Incus: the typed client, and the placement of disk trees where the daemon expects its own files."""
