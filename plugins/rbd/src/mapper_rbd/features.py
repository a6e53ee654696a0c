"""The features of an image, and those that a kernel has."""

from __future__ import annotations

#: librbd's ``RBD_FEATURE_*`` (include/rbd/features.h): bit -> name.
NAMES = {
    1 << 0: "layering",
    1 << 1: "striping",
    1 << 2: "exclusive-lock",
    1 << 3: "object-map",
    1 << 4: "fast-diff",
    1 << 5: "deep-flatten",
    1 << 6: "journaling",
    1 << 7: "data-pool",
    1 << 8: "operations",
    1 << 9: "migrating",
    1 << 10: "non-primary",
}

#: Where the kernel says which it has (Linux 4.11, Documentation/ABI/testing/sysfs-bus-rbd).
KERNEL_FILE = "/sys/bus/rbd/supported_features"

#: What the first kernels had that do not say it: layering and striping (Linux 3.10).
OLD_KERNEL = 0b11


def names(mask: int) -> tuple[str, ...]:
    """Names of the features in a mask, the unknown ones as numbers."""
    bits = [1 << position for position in range(mask.bit_length()) if mask >> position & 1]
    return tuple(NAMES.get(bit, f"{bit:#x}") for bit in bits)


def of_kernel(path: str = KERNEL_FILE) -> int:
    """Mask of what the kernel's driver has."""
    try:
        with open(path, encoding="ascii") as file:
            return int(file.read(), 16)
    except FileNotFoundError:
        return OLD_KERNEL


def missing(image: int, kernel: int) -> str:
    """Why a kernel cannot map an image; empty when it can.

    The kernel itself only says "No such device or address" (C-01).
    """
    lacks = image & ~kernel
    if not lacks:
        return ""
    return (
        f"the image has features that this kernel does not know: {', '.join(names(lacks))} ({lacks:#x} of {image:#x})"
    )
