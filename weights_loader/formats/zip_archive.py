"""The zip archive around a checkpoint, as torch.save writes it: checked whole before anything in it is read."""

import struct
import zlib
from pathlib import Path
from typing import BinaryIO, NamedTuple

from minisd.errors import FileFormatError, IntegrityError, MinisdError, UnsafeFileError
from weights_loader.formats.safetensors_header import shown

MAX_PICKLE = 2**25  # bytes; SD 1.5 with EMA and training state takes less than one million
MAX_MEMBERS = 100_000  # of the zip archive: one a storage
RECIPE = "get the .safetensors of this model, or save it again with torch.save(model.state_dict(), path)"


class Member(NamedTuple):
    """A file in the zip archive: its local header lies at `offset`, its last byte before `limit`."""

    offset: int
    size: int
    crc: int
    limit: int


def directory(file: BinaryIO, size: int, path: Path) -> dict[str, Member]:
    """The central directory, checked before anything that it points to is read (PKWARE APPNOTE, 4.3)."""
    file.seek(max(0, size - 98))
    tail = file.read(98).rjust(98, b"\0")
    if not tail[-22:].startswith(b"PK\x05\x06"):
        raise IntegrityError(f"{path} does not end as a zip archive does: an incomplete download; download it again.")
    count, length, start = struct.unpack("<10xHII2x", tail[-22:])
    end = size - 22
    if tail[-42:].startswith(b"PK\x06\x07") and tail.startswith(b"PK\x06\x06"):  # zip64
        count, length, start = struct.unpack("<32xQQQ", tail[:56])
        end = size - 98
    if count > MAX_MEMBERS or length > MAX_PICKLE:
        raise hostile(path, f"lists {count:,} members in {length:,} bytes")
    if start + length != end:
        raise FileFormatError(f"{path}: the directory of the zip archive is not where it should be; download it again.")
    file.seek(start)
    raw = file.read(length)
    found = []
    at = 0
    try:
        for _ in range(count):
            fields = struct.unpack_from("<4s4xHH4xIIIHHH8xI", raw, at)
            mark, flags, method, crc, packed, unpacked, name_length, extra_length, comment_length, offset = fields
            name = raw[at + 46 : at + 46 + name_length].decode("utf-8")
            extra = raw[at + 46 + name_length :][:extra_length]
            unpacked, packed, offset = _widen(extra, unpacked, packed, offset)
            if mark != b"PK\x01\x02":
                raise ValueError("no entry")
            _refuse_program(name, path)
            if flags & ~0x808 or method != 0 or packed != unpacked:
                raise hostile(path, f"has a compressed, encrypted or odd member {shown(name)}")
            found.append((offset, 30 + name_length + packed, packed, crc, name))
            at += 46 + name_length + extra_length + comment_length
    except (struct.error, ValueError) as error:
        if isinstance(error, MinisdError):
            raise
        raise FileFormatError(f"{path}: the directory of the zip archive is damaged; download it again.") from None
    found.sort()
    limits = [offset for offset, *_ in found[1:]] + [start]
    if any(offset + total > limit for (offset, total, *_), limit in zip(found, limits, strict=True)):
        raise hostile(path, "has members that overlap or lie outside of it")
    members = {
        name: Member(offset, length, crc, limit)
        for (offset, _, length, crc, name), limit in zip(found, limits, strict=True)
    }
    if len(members) < count or at != len(raw):
        raise hostile(path, "lists a member twice, or hides something in its directory")
    return members


def _widen(extra: bytes, *values: int) -> tuple[int, ...]:
    """The 32-bit fields of a member; where one is saturated, its 64-bit value from the zip64 extra field."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            wide = iter(struct.unpack_from(f"<{length // 8}Q", extra, at + 4))
            return tuple(next(wide, value) if value == 0xFFFFFFFF else value for value in values)
        at += 4 + length
    return values


def start_of(file: BinaryIO, name: str, member: Member, path: Path) -> int:
    """Where the bytes of a member begin; the headers before and behind them must agree with the directory."""
    file.seek(member.offset)
    mark, name_length, extra_length = struct.unpack("<4s22xHH", file.read(30))
    local_name = file.read(name_length)
    start = member.offset + 30 + name_length + extra_length
    end = start + member.size
    file.seek(end)
    descriptor = file.read(8) if end != member.limit else b""
    sound = (
        mark == b"PK\x03\x04"
        and local_name == name.encode()
        and end <= member.limit
        and descriptor in (b"", b"PK\x07\x08" + member.crc.to_bytes(4, "little"))
    )
    if not sound:
        raise hostile(path, f"contradicts its directory about {shown(name)}")
    return start


def read_member(file: BinaryIO, name: str, member: Member, path: Path) -> bytes:
    if member.size > MAX_PICKLE:
        raise hostile(path, f"has a pickle of {member.size:,} bytes, expected at most {MAX_PICKLE:,}")
    file.seek(start_of(file, name, member, path))
    raw = file.read(member.size)
    if member.crc not in (0, zlib.crc32(raw)):  # torch.serialization.set_crc32_options(False) writes 0
        raise IntegrityError(f"{path}: {shown(name)} inside is damaged (its CRC is wrong); download it again.")
    return raw


def _refuse_program(name: str, path: Path) -> None:
    parts = name.split("/")
    if "code" in parts[1:2] or parts[-1] in ("constants.pkl", "archive_format"):
        raise UnsafeFileError(f"{path} is a program (TorchScript or torch.export: {shown(name)}); {RECIPE}.")


def hostile(path: Path, what: str) -> UnsafeFileError:
    return UnsafeFileError(f"{path} {what}, which torch.save never writes; {RECIPE}.")
