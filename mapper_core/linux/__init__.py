"""Thin, typed wrappers of kernel interfaces, one file each.

The only place of the project with ``ioctl``, ``ctypes`` and raw system calls. Nothing here knows formats, journals
or containers. Functions take and give file descriptors and plain values; a descriptor that a function returns
belongs to the caller, is close-on-exec, and has to be closed by the caller.

``blkpg``, ``block`` and ``syscalls`` raise :class:`OSError` as the kernel answered; the other modules raise the typed
errors of :mod:`mapper_core.errors`.
"""
