"""The folder of the control sockets, and where else on this machine such a folder may be."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

FOLDER_NAME = "inflight-control"
RUN_USERS = Path("/run/user")
STUB = "triton_python_backend_stub"


def control_dir() -> Path:
    """The folder for the sockets of this process's models: the first of `_choices`; made 0700.

    Raises OSError when it cannot be made, or is one that somebody else made or can enter.
    """
    folder = _choices(os.environ, os.getuid())[0]
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _is_private(folder, os.getuid()):
        raise PermissionError(f"{folder} is not a folder of this user that nobody else can enter (mode 0700)")
    return folder


def candidate_folders(everywhere: bool = False) -> list[Path]:
    """Every folder in which a model that this user may speak to can listen: those that exist and are that user's alone.

    `INFLIGHT_CONTROL_DIR` says it all, unless `everywhere`. Without it: an operator's shell has often another
    environment than the server (docker exec, cron, sudo), so these are the choices of this environment, those of every
    running stub's that can be read, and for root those of every user.
    """
    user = os.getuid()
    if not everywhere and os.environ.get("INFLIGHT_CONTROL_DIR"):
        return [folder for folder in _choices(os.environ, user)[:1] if _is_private(folder, user)]
    found: list[tuple[Path, int | None]] = [(folder, user) for folder in _choices(os.environ, user)]
    for environment, owner in _stub_environments():
        found += [(folder, owner) for folder in _choices(environment, owner)]
    if user == 0:
        found += [(folder, None) for folder in sorted(RUN_USERS.glob(f"*/{FOLDER_NAME}"))]
        for temporary in (Path(tempfile.gettempdir()), Path("/tmp")):
            found += [(folder, None) for folder in sorted(temporary.glob(f"{FOLDER_NAME}-*"))]
    folders: dict[tuple[int, int], Path] = {}
    for folder, expected in found:
        owner_id = _user_of(folder) if expected is None else expected
        if owner_id is not None and _is_private(folder, owner_id):
            status = folder.stat()
            folders.setdefault((status.st_dev, status.st_ino), folder)
    return list(folders.values())


def own_folders() -> list[Path]:
    """Where models of this user and this environment listen: those folders that exist and are the user's alone."""
    return [folder for folder in _choices(os.environ, os.getuid()) if _is_private(folder, os.getuid())]


def _choices(environment: Mapping[str, str], user: int) -> list[Path]:
    """Where models of `user` listen, the first that applies first: what the environment names, the user's runtime
    folder where there is one (nobody else can take a name in it), a folder under the temporary one.
    """
    named = environment.get("INFLIGHT_CONTROL_DIR")
    choices = [Path(named)] if named else []
    for runtime in (environment.get("XDG_RUNTIME_DIR"), str(RUN_USERS / str(user))):
        if runtime and _is_private(Path(runtime), user):
            choices.append(Path(runtime) / FOLDER_NAME)
    stated = next((environment[name] for name in ("TMPDIR", "TEMP", "TMP") if environment.get(name)), "/tmp")
    own = [tempfile.gettempdir()] if environment is os.environ else [stated]
    choices += [Path(temporary) / f"{FOLDER_NAME}-{user}" for temporary in dict.fromkeys([*own, "/tmp"])]
    return choices


def _is_private(folder: Path, user: int) -> bool:
    try:
        status = folder.lstat()
    except (OSError, ValueError):
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == user and not status.st_mode & 0o077


def _user_of(folder: Path) -> int | None:
    """Whose folder it is by its name; who made it has to be the same one."""
    name = folder.parent.name if folder.name == FOLDER_NAME else folder.name.removeprefix(f"{FOLDER_NAME}-")
    return int(name) if name.isdecimal() else None


def _stub_environments() -> Iterator[tuple[Mapping[str, str], int]]:
    """The environments of the running stubs that this user may look into, each with its user."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            program = os.fsdecode((process / "cmdline").read_bytes().split(b"\0")[0])
            if Path(program).name != STUB:
                continue
            pairs = [os.fsdecode(pair).partition("=") for pair in (process / "environ").read_bytes().split(b"\0")]
            yield {name: value for name, _, value in pairs}, process.stat().st_uid
        except OSError:  # gone, or somebody else's
            continue
