"""Which file systems are of the network, where the locks and the shared memory of SQLite mean nothing."""

import re
from pathlib import Path
from typing import Final

_NETWORK_FILE_SYSTEMS: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb2", "smb3", "smbfs", "ncpfs", "afs", "coda", "ceph", "glusterfs", "lustre", "gpfs"}
    | {"beegfs", "orangefs", "fuse.sshfs", "fuse.s3fs", "fuse.glusterfs", "fuse.ceph", "fuse.rclone"}
)


def mounts() -> str:
    """The text of /proc/mounts, empty where there is none."""
    try:
        return Path("/proc/mounts").read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return ""


def network_file_system(path: Path, mounts: str) -> str | None:
    """The type of the file system of an absolute path if that is a network one, judged by the text of /proc/mounts."""
    best, kind = "", ""
    for line in mounts.splitlines():
        _, escaped, fs, *_ = line.split(" ")
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), escaped)
        if len(point) >= len(best) and path.is_relative_to(point):
            best, kind = point, fs
    return kind if kind in _NETWORK_FILE_SYSTEMS else None
