"""The system calls a sandbox refuses, as the kernel's filter program (classic BPF); x86-64 and 64-bit ARM.

Namespaces and a read-only view of the file system leave some ways around them. A new user namespace could mount memory
that no limit counts; kernel keys (a Kerberos ticket, for one) are the user's, not the namespace's; AF_VSOCK reaches the
host of a virtual machine although there is no network; memory files are counted by nothing while nobody maps them.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import platform
import struct
import sys
from collections.abc import Iterator

__all__ = ["filter_descriptor", "program"]

# per machine: the kernel's name of the architecture, then system call numbers
_MACHINES = {
    "x86_64": 0xC000003E,
    "aarch64": 0xC00000B7,
}
_REFUSED = {  # not permitted: EPERM
    "x86_64": {
        "unshare": 272, "setns": 308, "mount": 165, "umount2": 166, "pivot_root": 155, "keyctl": 250, "add_key": 248,
        "request_key": 249, "bpf": 321, "perf_event_open": 298, "userfaultfd": 323, "ptrace": 101,
        "process_vm_readv": 310, "process_vm_writev": 311, "open_by_handle_at": 304,
    },
    "aarch64": {
        "unshare": 97, "setns": 268, "mount": 40, "umount2": 39, "pivot_root": 41, "keyctl": 219, "add_key": 217,
        "request_key": 218, "bpf": 280, "perf_event_open": 241, "userfaultfd": 282, "ptrace": 117,
        "process_vm_readv": 270, "process_vm_writev": 271, "open_by_handle_at": 265,
    },
}  # fmt: skip
_ABSENT = {  # no such call: ENOSYS, so that the C library falls back on an older one
    "x86_64": {"clone3": 435, "memfd_create": 319},
    "aarch64": {"clone3": 435, "memfd_create": 279},
}
_ABSENT_EVERYWHERE = {
    "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428, "move_mount": 429,
    "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "mount_setattr": 442, "memfd_secret": 447,
}  # fmt: skip
_CLONE = {"x86_64": 56, "aarch64": 220}
_SOCKET = {"x86_64": 41, "aarch64": 198}

_NAMESPACE_FLAGS = 0x7E020000  # CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET
_SOCKET_FAMILIES = (1, 2, 10, 16)  # AF_UNIX, AF_INET, AF_INET6, AF_NETLINK
_X32 = 0x40000000  # numbers from here on are x86-64's second set of calls

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data; little-endian
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000


@functools.lru_cache(maxsize=1)
def program(machine: str = "") -> bytes:
    """Return the filter for a machine (this one by default), b"" where none is known for it."""
    machine = machine or platform.machine()
    if machine not in _MACHINES or sys.byteorder != "little":
        return b""
    lines: list[tuple[int, int, int, int]] = []

    def refuse_where(test: int, value: int, error: int) -> None:
        lines.append((test, 0, 1, value))
        lines.append((_RETURN, 0, 0, _ERRNO | error))

    lines += [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, _MACHINES[machine])]
    lines += [(_RETURN, 0, 0, _ERRNO | errno.ENOSYS), (_LOAD, 0, 0, _NUMBER)]  # 32-bit programs are not run
    refuse_where(_AT_LEAST, _X32, errno.ENOSYS)
    for number in _REFUSED[machine].values():
        refuse_where(_EQUAL, number, errno.EPERM)
    for number in (*_ABSENT[machine].values(), *_ABSENT_EVERYWHERE.values()):
        refuse_where(_EQUAL, number, errno.ENOSYS)
    # clone with a flag that makes a namespace
    lines += [(_EQUAL, 0, 4, _CLONE[machine]), (_LOAD, 0, 0, _FIRST_ARGUMENT), (_ANY_BIT, 0, 1, _NAMESPACE_FLAGS)]
    lines += [(_RETURN, 0, 0, _ERRNO | errno.EPERM), (_RETURN, 0, 0, _ALLOW)]
    # sockets of another family
    families = len(_SOCKET_FAMILIES)
    lines += [(_EQUAL, 0, families + 2, _SOCKET[machine]), (_LOAD, 0, 0, _FIRST_ARGUMENT)]
    lines += [(_EQUAL, families - place, 0, family) for place, family in enumerate(_SOCKET_FAMILIES)]
    lines += [(_RETURN, 0, 0, _ERRNO | errno.EAFNOSUPPORT), (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("<HBBI", *line) for line in lines)


@contextlib.contextmanager
def filter_descriptor() -> Iterator[int]:
    """Yield a descriptor with the filter for bubblewrap to read; -1 where there is none for this machine."""
    content = program()
    if not content:
        yield -1
        return
    reading, writing = os.pipe()
    try:
        os.write(writing, content)  # far less than a pipe holds
        os.close(writing)
        yield reading
    finally:
        os.close(reading)
