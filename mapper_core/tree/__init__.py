"""From a block device to a mounted tree: what is on it, what will be mounted where, and the mounts."""
