"""Finding partitions on a device, by reading bytes: no process, no root, nothing of the host."""

from mapper_core.partitions.reader import ReadAt, file_reader, window

__all__ = ["ReadAt", "file_reader", "window"]
