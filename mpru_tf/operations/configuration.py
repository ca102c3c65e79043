"""A ModelServerConfig in a file: what it says about one model, edited in place and written atomically.

Labels live nowhere else: HandleReloadConfigRequest replaces the whole configuration, so whoever moves a label needs all
of it. People keep comments in these files, so an edit touches only the entry that it is about.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_encoding, text_format
from tensorflow_serving.config import model_server_config_pb2

from mpru_tf.errors import ServingError, explain
from mpru_tf.operations.client import Server


@dataclass(frozen=True)
class Configuration:
    """A server's configuration, as text and as what it says.

    Attributes:
        text: the text proto.
        message: the ``ModelServerConfig``.
    """

    text: str
    message: Any

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Configuration:
        """Read a configuration file.

        Raises:
            ServingError: it cannot be read, or is no ModelServerConfig.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
            return cls(text, _parsed(text))
        except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
            raise ServingError(
                explain(
                    "The server's configuration file cannot be read.",
                    received=f"{os.fspath(path)} ({error})",
                    valid="a ModelServerConfig as text, the one that the server runs with",
                )
            ) from error

    def labels(self, model: str) -> dict[str, int]:
        """The version that each label of a model stands for."""
        return dict(sorted(_entry(self.message, model).version_labels.items()))

    def base_path(self, model: str) -> str:
        """The model's base path, as the server sees it."""
        return str(_entry(self.message, model).base_path)

    def specific_versions(self, model: str) -> tuple[int, ...] | None:
        """The versions that the model's policy names; None for another policy."""
        policy = _entry(self.message, model).model_version_policy
        return tuple(policy.specific.versions) if policy.WhichOneof("policy_choice") == "specific" else None

    def kept(self, model: str) -> int | None:
        """How many of the newest versions the model's policy keeps loaded; None for another policy."""
        policy = _entry(self.message, model).model_version_policy
        choice = policy.WhichOneof("policy_choice")
        return (policy.latest.num_versions or 1) if choice in (None, "latest") else None

    def with_label(self, model: str, label: str, version: int) -> Configuration:
        """The configuration in which a label stands for a version."""
        message = _copy(self.message)
        _entry(message, model).version_labels[label] = version
        return _edited(self.text, message, lambda entry: _label_edits(entry, label, version), model)

    def with_specific_versions(self, model: str, versions: Sequence[int]) -> Configuration:
        """The configuration whose policy names exactly these versions."""
        message = _copy(self.message)
        policy = _entry(message, model).model_version_policy
        del policy.specific.versions[:]
        policy.specific.versions.extend(versions)
        return _edited(self.text, message, lambda entry: _version_edits(entry, versions), model)


def _parsed(text: str) -> Any:
    return text_format.Parse(text, model_server_config_pb2.ModelServerConfig())


def _copy(message: Any) -> Any:
    copied = model_server_config_pb2.ModelServerConfig()
    copied.CopyFrom(message)
    return copied


def _entry(message: Any, model: str) -> Any:
    entries = [entry for entry in message.model_config_list.config if entry.name == model]
    if len(entries) != 1:
        names = ", ".join(entry.name for entry in message.model_config_list.config)
        raise ServingError(
            explain(
                "The server's configuration names this model not exactly once.", received=model, valid=names or None
            )
        )
    return entries[0]


# -------------------------------------------------------------------------------------------------------- replacing
@contextlib.contextmanager
def alone_with(path: str | os.PathLike[str]) -> Iterator[None]:
    """Keep other runs of these commands from editing the same file meanwhile."""
    descriptor = os.open(Path(path).resolve().parent, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # no locks there (NFS)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def replace(server: Server, path: str | os.PathLike[str], before: Configuration, after: Configuration) -> None:
    """Have a server take over a configuration, then write it to its file; either both happen or neither.

    Raises:
        ServingError: the server refuses it; it has the old one again, and the file is as it was.
    """
    try:
        server.reload(after.message)
        _write(Path(path), after.text)
    except BaseException as error:  # an interrupt, too, must not leave the two apart
        # A refused label may follow a policy that was taken over: the old configuration as a whole, once more.
        with contextlib.suppress(ServingError):
            server.reload(before.message)
        with contextlib.suppress(OSError):
            if Path(path).read_bytes() != before.text.encode():
                _write(Path(path), before.text)
        if not isinstance(error, OSError):
            raise
        raise ServingError(
            explain(
                "The server's configuration file cannot be written, so the server has the old configuration again.",
                received=f"{os.fspath(path)} ({error.strerror or error})",
                valid="a file that this user may replace",
            )
        ) from error


def _write(path: Path, text: str) -> None:
    path = path.resolve()
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(temporary, "x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, stat.S_IMODE(path.stat().st_mode))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


# ----------------------------------------------------------------------------------------------- editing a text proto
_TOKEN = re.compile(
    r"""(?P<blank>\s+|\#[^\n]*) | (?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')
      | (?P<sign>[{}<>\[\]:;,]) | (?P<word>[^\s{}<>\[\]:;,\#"']+)""",
    re.VERBOSE,
)
_CLOSING = {"{": "}", "<": ">"}
_QUOTES = ("'", '"')


@dataclass(frozen=True)
class _Field:
    """One field of a text proto: where it stands, and where its value does; ``inside`` are those of a message."""

    name: str
    start: int
    end: int
    value: tuple[int, int]
    inside: tuple[_Field, ...] | None


_Edit = tuple[int, int, str]


class _NotPlain(ValueError):
    """The text is written in a way that is not followed here."""


def _edited(text: str, message: Any, edits: Any, model: str) -> Configuration:
    """The text with as little changed as can be; written anew, without its comments, where it is not plain."""
    try:
        fields = _fields(text)
        entries = [entry for one in fields if one.name == "model_config_list" for entry in one.inside or ()]
        (entry,) = (entry for entry in entries if _text_of(text, entry, "name") == model)
        changed = text
        for start, end, new in sorted(edits(_Block(text, entry)), reverse=True):
            changed = changed[:start] + new + changed[end:]
        if _parsed(changed) == message:
            return Configuration(changed, message)
    except (ValueError, text_format.ParseError):
        pass
    return Configuration(text_format.MessageToString(message), message)


@dataclass(frozen=True)
class _Block:
    text: str
    field: _Field

    def fields(self, name: str) -> list[_Field]:
        return [field for field in self.field.inside or () if field.name == name]

    def added(self, line: str) -> _Edit:
        """An edit that puts a field at the end of this message, on a line of its own if it has several."""
        close = self.field.value[1] - 1
        before = self.text[:close].rstrip(" \t")
        if before.endswith("\n"):
            indent = " " * (len(self.text[:close]) - len(before))
            return close, close, f"  {line}\n{indent}"
        return close, close, f"{'' if self.text[close - 1].isspace() else ' '}{line} "


def _label_edits(entry: _Block, label: str, version: int) -> list[_Edit]:
    for field in entry.fields("version_labels"):
        block = _Block(entry.text, field)
        if _text_of(entry.text, field, "key") == label:
            values = block.fields("value")
            return [(*values[-1].value, str(version))] if values else [block.added(f"value: {version}")]
    quoted = text_encoding.CEscape(label, as_utf8=True)
    return [entry.added(f'version_labels {{ key: "{quoted}" value: {version} }}')]


def _version_edits(entry: _Block, versions: Sequence[int]) -> list[_Edit]:
    (policy,) = entry.fields("model_version_policy")
    (specific,) = _Block(entry.text, policy).fields("specific")
    block = _Block(entry.text, specific)
    there = block.fields("versions")
    numbers = [int(entry.text[slice(*field.value)], 0) for field in there]
    gone = [field for field, number in zip(there, numbers, strict=True) if number not in versions]
    new = [number for number in versions if number not in numbers]
    edits = [(_with_blanks(entry.text, field.start), field.end, "") for field in gone]
    return edits + ([block.added(" ".join(f"versions: {number}" for number in new))] if new else [])


def _with_blanks(text: str, start: int) -> int:
    return len(text[:start].rstrip(" \t"))


def _text_of(text: str, message: _Field, name: str) -> str | None:
    """The string in a field of a message."""
    for field in message.inside or ():
        if field.name == name:
            parts = (match.group() for match in _TOKEN.finditer(text, *field.value) if match.lastgroup == "string")
            return b"".join(text_encoding.CUnescape(part[1:-1]) for part in parts).decode("utf-8")
    return None


def _fields(text: str) -> tuple[_Field, ...]:
    tokens: list[tuple[str, int, int]] = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise _NotPlain(position)
        if match.lastgroup != "blank":
            tokens.append((match.group(), *match.span()))
        position = match.end()
    tokens.append(("", len(text), len(text)))
    fields, rest = _message(tokens, 0, "")
    if rest != len(tokens):
        raise _NotPlain(rest)
    return fields


def _message(tokens: Sequence[tuple[str, int, int]], at: int, closing: str) -> tuple[tuple[_Field, ...], int]:
    """The fields up to a closing brace, and the place behind it."""
    fields: list[_Field] = []
    while tokens[at][0] != closing:
        name, start, _ = tokens[at]
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise _NotPlain(start)
        at += 1
        if tokens[at][0] == ":":
            at += 1
        opening, value_start, value_end = tokens[at]
        inside: tuple[_Field, ...] | None = None
        if opening in _CLOSING:
            inside, at = _message(tokens, at + 1, _CLOSING[opening])
            value_end = tokens[at - 1][2]
        elif not opening or opening in "[]{}<>:;,":
            raise _NotPlain(value_start)
        else:
            at += 1
            while opening[0] in _QUOTES and tokens[at][0][:1] in _QUOTES:  # strings side by side are one
                value_end, at = tokens[at][2], at + 1
        end = value_end
        if tokens[at][0] in (",", ";"):
            end, at = tokens[at][2], at + 1
        fields.append(_Field(name, start, end, (value_start, value_end), inside))
    return tuple(fields), at + 1
