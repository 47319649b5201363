"""Processes that cannot use the network, and tell of every try: in Python, and in native code.

environment(folder) ─► a process and all that it starts ─► tried(folder): one line a try
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
_HOOK = """
import os
import socket
import sys
import traceback


def forbid(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        if arguments[0].family not in (socket.AF_INET, socket.AF_INET6):
            return
    elif event not in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        return
    where = "".join(traceback.format_stack(limit=12))
    with open(os.environ["TRIED_LOG"], "a") as log:
        log.write(f"{event} {arguments[1:]} {sys.argv} {where}".replace("\\n", " ") + "\\n")
    raise OSError(f"{event}: no network in this test")


sys.addaudithook(forbid)
"""
_SHIM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static int forbidden(const struct sockaddr *address, const char *call) {
    const char *log = getenv("TRIED_LOG");
    if (!address || (address->sa_family != AF_INET && address->sa_family != AF_INET6)) return 0;
    if (log) dprintf(open(log, O_WRONLY | O_APPEND | O_CREAT, 0600), "native %s\\n", call);
    errno = ENETUNREACH;
    return 1;
}

int connect(int socket, const struct sockaddr *address, socklen_t length) {
    int (*real)(int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "connect");
    return forbidden(address, "connect") ? -1 : real(socket, address, length);
}

ssize_t sendto(int socket, const void *data, size_t size, int flags,
               const struct sockaddr *address, socklen_t length) {
    ssize_t (*real)(int, const void *, size_t, int, const struct sockaddr *, socklen_t) =
        dlsym(RTLD_NEXT, "sendto");
    return forbidden(address, "sendto") ? -1 : real(socket, data, size, flags, address, length);
}
"""


def environment(folder: Path, **changed: str) -> dict[str, str]:
    """That of a process which tells of its tries in ``folder``, and what ``changed`` says.

    The user's folders lie there too, and the hub may be asked: no variable says that it may not.
    """
    hook = folder / "hook"
    hook.mkdir(exist_ok=True)
    (hook / "sitecustomize.py").write_text(_HOOK)
    path = [str(hook), str(ROOT), os.environ.get("PYTHONPATH", "")]
    kept = {name: value for name, value in os.environ.items() if "OFFLINE" not in name}
    shim = _shim(folder)
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "TRIED_LOG": str(folder / "tried.log"),
        "XDG_DATA_HOME": str(folder / "data"),
        "LLMFIT_STORE": str(folder / "store.db"),
        **({} if shim is None else {"LD_PRELOAD": str(shim)}),
        **changed,
    }


def tried(folder: Path) -> list[str]:
    """What was tried, one line each."""
    log = folder / "tried.log"
    return log.read_text().splitlines() if log.exists() else []


def _shim(folder: Path) -> Path | None:
    """A library that stands before the system's calls; None without Linux and a C compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if os.uname().sysname != "Linux" or compiler is None:
        return None
    source, library = folder / "shim.c", folder / "shim.so"
    if not library.exists():
        source.write_text(_SHIM)
        command = [compiler, "-shared", "-fPIC", "-w", str(source), "-o", str(library), "-ldl"]
        subprocess.run(command, check=True)
    return library
