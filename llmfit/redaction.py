"""Secrets of this process, kept out of records, logs, reports and errors.

    environment, command line, files of the hub client and .netrc ─► Secrets
        hide(text), hide_in(record), stream() for bytes as they come ─► the same with ***

What a library or a worker says is from outside, and may hold anything that it was given: a token
in an address that was refused, a dump of the environment. Values are hidden wherever they stand;
those below ``SHORTEST`` characters only as the password of an address, since they are words.
"""

from __future__ import annotations

import json
import netrc
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints
from urllib.parse import quote, unquote, urlsplit

T = TypeVar("T")
HIDDEN = "***"
SHORTEST = 8
"""Characters of the shortest value that is hidden by itself. Source: NIST SP 800-63B's shortest
password."""
_SECRET_NAME = re.compile(
    r"TOKEN|SECRET|PASSW|PASSPHRASE|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|CREDENTIAL|WEBHOOK|COOKIE"
    r"|AUTH(?!OR)|_KEY$|_PASS$|_PWD$",
    re.IGNORECASE,
)
"""Of variables that hold one."""
_USER_INFO = re.compile(r"(?<=://)(?P<user>[^\s/:@'\"]*):(?P<password>[^\s/@'\"]*)@")
_WHOLE_USER_INFO = re.compile(r"(?<=://)(?P<user>[^/:@]*):(?P<password>.*)@", re.DOTALL)
"""The same of a word that is one address: a password may then hold spaces, / and @."""
_QUERY = re.compile(
    r"(?P<name>[?&](?:[\w-]*(?:password|passwd|token|secret|key|signature|sig))=)"
    r"(?P<value>[^&#\s'\"]+)",
    re.IGNORECASE,
)
_ROW_NAMES = frozenset({"backend", "reference", "tied", "pareto"})
"""Fields of records that name a row: by them its parts are found again."""


@dataclass(frozen=True, slots=True)
class Secrets:
    """Values to hide, the longest first."""

    values: tuple[str, ...] = ()

    def hide(self, text: str) -> str:
        """``text`` without the values, and without any password of an address."""
        for value in self.values:
            text = text.replace(value, HIDDEN)
        return without_passwords(text)

    def hide_in(self, record: T) -> T:
        """A frozen record with its texts hidden, and of those below it; itself where none is.

        What is one of a few words (a ``Literal``), or names a row, stays.
        """
        kind: Any = type(record)
        kinds = _kinds(kind)
        changes = {}
        for each in fields(record):  # type: ignore[arg-type]
            if each.name in _ROW_NAMES or kinds[each.name]:
                continue
            value = getattr(record, each.name)
            hidden = self._hidden(value)
            if hidden is not value:
                changes[each.name] = hidden
        return replace(record, **changes) if changes else record  # type: ignore[type-var]

    def _hidden(self, value: Any) -> Any:
        """``value`` hidden; the very same object where nothing is to hide."""
        if isinstance(value, str):
            hidden = self.hide(value)
            return value if hidden == value else hidden
        if is_dataclass(value) and not isinstance(value, type):
            return self.hide_in(value)
        if isinstance(value, tuple) and value and not isinstance(value[0], int | float):
            several = tuple(map(self._hidden, value))
            same = all(new is old for new, old in zip(several, value, strict=True))
            return value if same else several
        if isinstance(value, Mapping):
            pairs = {key: self._hidden(each) for key, each in value.items()}
            return value if all(pairs[key] is value[key] for key in pairs) else pairs
        return value

    def stream(self) -> HiddenStream:
        """For bytes that come in pieces."""
        return HiddenStream(tuple(value.encode(errors="surrogateescape") for value in self.values))


class HiddenStream:
    """Bytes in pieces, in which a value may begin in one and end in the next."""

    def __init__(self, values: Sequence[bytes]) -> None:
        self._values = values
        self._kept_back = max(map(len, values), default=1) - 1
        self._rest = b""

    def feed(self, piece: bytes) -> bytes:
        """What can be told of the pieces so far: all but an end that a value may begin in."""
        text = self._rest + piece
        for value in self._values:
            text = text.replace(value, HIDDEN.encode())
        certain = max(0, len(text) - self._kept_back)
        self._rest = text[certain:]
        return text[:certain]

    def flush(self) -> bytes:
        """The rest, at the end."""
        rest, self._rest = self._rest, b""
        return rest


@cache
def _kinds(kind: type[Any]) -> dict[str, bool]:
    """Of each field of a record whether it is one of a few words."""
    return {name: _is_choice(hint) for name, hint in get_type_hints(kind).items()}


def _is_choice(hint: Any) -> bool:
    return get_origin(hint) is Literal or any(map(_is_choice, get_args(hint)))


# ---------------------------------------------------------------- addresses


def without_passwords(text: str) -> str:
    """``text`` with the passwords of addresses hidden: ``postgresql://me:***@host``."""
    return _QUERY.sub(rf"\g<name>{HIDDEN}", _USER_INFO.sub(rf"\g<user>:{HIDDEN}@", text))


def without_password(word: str) -> str:
    """A word of a command, without the password of the address that it is or ends with.

    As ``postgresql://me@host`` it can be run again, with the password in PGPASSWORD.
    """
    return _QUERY.sub(rf"\g<name>{HIDDEN}", _WHOLE_USER_INFO.sub(r"\g<user>@", word))


def _of_address(text: str) -> Iterator[str]:
    """The password that an address holds, as it stands there and as it is meant.

    A short one together with the user's name.
    """
    found = _WHOLE_USER_INFO.search(text)
    if found is not None:
        password = found["password"]
        yield from (password, unquote(password))
        if len(password) < SHORTEST:
            yield f"{found['user']}:{password}@"
    for each in _QUERY.finditer(text):
        yield from (each["value"], unquote(each["value"]))


# ---------------------------------------------------------------- what there is to hide


def known_secrets() -> Secrets:
    """What this process knows of now."""
    return secrets_of(os.environ, sys.argv)


def secrets_of(environment: Mapping[str, str], words: Sequence[str]) -> Secrets:
    """The secrets of an environment, of the files that it points to, and of a command line."""
    found = {
        form
        for value in (*_of_environment(environment), *_of_files(environment), *_of_words(words))
        for form in _forms(value)
        if len(form) >= SHORTEST
    }
    return Secrets(tuple(sorted(found, key=lambda form: (-len(form), form))))


def _of_environment(environment: Mapping[str, str]) -> Iterator[str]:
    for name, value in environment.items():
        if "://" in value:
            yield from _of_address(value)
        if _SECRET_NAME.search(name) and not _is_path(value):
            yield value
            yield from (line.strip() for line in value.splitlines())
            if "://" in value:  # an error may name the place on the host alone
                address = urlsplit(value)
                yield from (address.path, address.query)


def _is_path(value: str) -> bool:
    """True for a file or folder that is there: its place is no secret."""
    with suppress(OSError, ValueError):
        return Path(value).is_absolute() and Path(value).exists()
    return False


def _of_words(words: Sequence[str]) -> Iterator[str]:
    """Passwords of addresses, and an address behind --webhook, where none belongs."""
    for before, word in zip(("", *words), words, strict=False):
        option, _, value = word.partition("=")
        for address in (word, value):
            if "://" in address:
                yield from _of_address(address)
        for address in (
            word if before == "--webhook" else "",
            value if option == "--webhook" else "",
        ):
            if "://" in address:
                yield from (address, urlsplit(address).path)


def _of_files(environment: Mapping[str, str]) -> Iterator[str]:
    """Tokens that ``hf auth login`` stored, and passwords of .netrc, where wandb's is.

    Source of the places: huggingface_hub's constants.py.
    """
    home = Path(environment.get("HOME") or Path.home())
    cached = Path(environment.get("XDG_CACHE_HOME") or home / ".cache") / "huggingface"
    hub = Path(environment.get("HF_HOME") or cached).expanduser()
    token = Path(environment.get("HF_TOKEN_PATH") or hub / "token").expanduser()
    with suppress(OSError, UnicodeDecodeError):
        yield token.read_text("utf-8").strip()
    with suppress(OSError, UnicodeDecodeError):
        lines = token.with_name("stored_tokens").read_text("utf-8").splitlines()
        yield from (line.partition("=")[2].strip() for line in lines)
    with suppress(OSError, UnicodeDecodeError, netrc.NetrcParseError):
        kept = netrc.netrc(environment.get("NETRC") or str(home / ".netrc"))
        yield from (password for _, _, password in kept.hosts.values() if password)


def _forms(value: str) -> Iterable[str]:
    """A value as it is, and as addresses, JSON and Python write it."""
    return {value, quote(value, safe=""), quote(value), json.dumps(value)[1:-1], repr(value)[1:-1]}
