"""The daemon reads kernels here: in a process of its own that owns nothing and is limited.

    python -m hanok.kernels UID NAME KERNEL INITRD [NAME KERNEL INITRD...]

Prints one JSON document a line, each a KernelReport or a problem: the API's words for an error.
As root it becomes UID, once everything is imported: that uid may not be able to read Hanok itself.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hanok.errors import HanokError
from hanok.kernels.inspect import inspect_files
from hanok.model.kernel import KernelFailure


def main(words: list[str]) -> int:
    """Read the files that ``words`` name. Returns the exit status."""
    uid, rest = int(words[0]), words[1:]
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    for name, kernel, initrd in zip(rest[::3], rest[1::3], rest[2::3], strict=True):
        try:
            found = inspect_files(name, Path(kernel), Path(initrd) if initrd else None)
            print(found.model_dump_json(), flush=True)
        except HanokError as error:
            print(KernelFailure(name=name, why=error.message).model_dump_json(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
