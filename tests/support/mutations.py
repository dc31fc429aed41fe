"""Weight files damaged in one place: header, shapes, offsets, members of archives, pickles, data, length."""

import collections
import functools
import io
import json
import pickletools
import random
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple


class Mutation(NamedTuple):
    """kind: what was changed. in_data: weights may have changed and nothing else shows it. raw: the damaged file."""

    kind: str
    in_data: bool
    raw: bytes


NUMBERS = (0, 1, -1, 2, 3, 7, 8, 64, 2**31, 2**32, 2**62, 2**63, 2**64, 10**30, 1.5, True, None, "4", [4])
DTYPES = ("F32", "F16", "BF16", "F64", "F8_E4M3", "F8_E5M2", "I8", "I32", "I64", "U8", "BOOL", "C64", "F4", "f32", 5)
LENGTHS = (0, 1, 2, 7, 2**16, 2**31, 2**32 - 1, 2**40, 10**8, 10**8 + 1, 2**63 - 1, 2**63, 2**64 - 1)


def mutated(raw: bytes, chance: random.Random) -> Mutation:
    """One change of a .safetensors file, or of a checkpoint in either format."""
    if chance.random() < 0.25:
        return _any_file(raw, chance)
    if raw[:4] == b"PK\x03\x04":
        return _archive(raw, chance)
    return _safetensors(raw, chance) if raw[8:9] == b"{" else _legacy(raw, chance)


def _any_file(raw: bytes, chance: random.Random) -> Mutation:
    """Cut, or bytes changed, removed, repeated or added anywhere."""
    at, length = chance.randrange(len(raw)), chance.choice([1, 1, 4, 64, 5000])
    match chance.randrange(6):
        case 0:
            return Mutation("cut", False, raw[:at])
        case 1:
            return Mutation("cut near an end", False, raw[: chance.choice([at % 600, len(raw) - 1 - at % 600])])
        case 2:
            return Mutation("bytes removed", False, raw[:at] + raw[at + length :])
        case 3:
            return Mutation("bytes repeated", False, raw[: at + length] + raw[at:])
        case 4:
            return Mutation("bytes appended", False, raw + chance.randbytes(length))
        case _:
            return Mutation("bytes overwritten", True, _overwritten(raw, at, length, chance))


def _overwritten(raw: bytes, at: int, length: int, chance: random.Random) -> bytes:
    length = min(length, len(raw) - at)
    new = chance.choice([bytes(length), b"\xff" * length, chance.randbytes(length)])
    return raw[:at] + new + raw[at + length :]


def _bits_flipped(raw: bytes, begin: int, end: int, chance: random.Random) -> bytes:
    """1 to 20 bits of raw[begin:end]."""
    data = bytearray(raw)
    for _ in range(chance.choice([1, 1, 1, 5, 20])):
        data[chance.randrange(begin, end)] ^= 1 << chance.randrange(8)
    return bytes(data)


def _safetensors(raw: bytes, chance: random.Random) -> Mutation:
    end = 8 + int.from_bytes(raw[:8], "little")
    match chance.randrange(8):
        case 0:
            length = chance.choice([*LENGTHS, end - 8 + chance.randint(-70, 70), chance.randrange(len(raw))])
            return Mutation("length of the header", False, length.to_bytes(8, "little") + raw[8:])
        case 1 | 2:
            return Mutation("bits of the header", False, _bits_flipped(raw, 0, end, chance))
        case 3:
            return Mutation("bits of the data", True, _bits_flipped(raw, end, len(raw), chance))
    header = json.loads(raw[8:end])
    kind = _change_header(header, chance)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return Mutation(kind, False, len(text).to_bytes(8, "little") + text + raw[end:])


def _change_header(header: dict[str, Any], chance: random.Random) -> str:
    """Change one entry in place; what it was."""
    name, other = chance.sample([each for each in header if each != "__metadata__"], 2)
    entry = header[name]
    match chance.randrange(10):
        case 0 | 1:
            entry["dtype"] = chance.choice(DTYPES)
            return "dtype"
        case 2 | 3:
            shape = entry["shape"]
            if shape and chance.random() < 0.7:
                shape[chance.randrange(len(shape))] = chance.choice(NUMBERS)
            else:
                entry["shape"] = chance.choice([[], [*shape, 1], shape[::-1], shape * 500, {}, "x", None, 5])
            return "shape"
        case 4 | 5:
            offsets = entry["data_offsets"]
            offsets[chance.randrange(2)] += chance.choice([1, -1, 4, -4, 64, 2**40, -(2**40), 0.5])
            if chance.random() < 0.3:
                entry["data_offsets"] = chance.choice([offsets[::-1], offsets[:1], [0, *offsets], [], {}, None, "0,4"])
            return "offsets"
        case 6:
            header[chance.choice([name + "x", name[:-1], name.upper(), "", "\0", "x" * 2000])] = header.pop(name)
            return "name"
        case 7:
            header.pop(name)
            return "entry removed"
        case 8:
            entry["data_offsets"] = header[other]["data_offsets"]
            return "offsets of another tensor"
        case _:
            metadata = header.setdefault("__metadata__", {})
            key = chance.choice(sorted(metadata) or ["format"])
            metadata[key] = chance.choice(["", "{}", "[]", "x", 5, None, metadata.get(key, "")[:-1]])
            return "metadata"


def _legacy(raw: bytes, chance: random.Random) -> Mutation:
    """The older format: pickles, then the data."""
    end = _end_of_pickles(raw)
    if chance.random() < 0.7:
        return Mutation("bits of the pickles", False, _bits_flipped(raw, 0, end, chance))
    return Mutation("bits of the data", True, _bits_flipped(raw, end, len(raw), chance))


@functools.cache
def _end_of_pickles(raw: bytes) -> int:
    file = io.BytesIO(raw)
    for _ in range(5):
        collections.deque(pickletools.genops(file), 0)
    return file.tell()


def _archive(raw: bytes, chance: random.Random) -> Mutation:
    """A zip archive: written again with other members and right checksums, or bits of its directory."""
    if chance.random() < 0.2:
        directory = raw.index(b"PK\x01\x02")
        return Mutation("bits of the directory", False, _bits_flipped(raw, directory, len(raw), chance))
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    at = chance.randrange(len(members))
    name, content = members[at]
    pickle = next(i for i, (each, _) in enumerate(members) if each.endswith("data.pkl"))
    kind, method = "", zipfile.ZIP_STORED
    match chance.randrange(8):
        case 0:
            kind = "member removed"
            del members[at]
        case 1:
            kind = "member renamed"
            members[at] = (
                chance.choice([name + "x", f"x/{name}", f"../{name}", name.replace("archive", "a")]),
                content,
            )
        case 2:
            kind = "member repeated"
            members.append((name, content))
        case 3:
            kind = "member cut or longer"
            members[at] = (name, chance.choice([content[:-1], content[: len(content) // 2], b"", content + bytes(64)]))
        case 4:
            kind, method = "member compressed", zipfile.ZIP_DEFLATED
        case 5:
            kind = "bits of a member"
            members[at] = (name, _bits_flipped(content, 0, len(content), chance) if content else b"x")
        case _:
            kind = "bits of the pickle"
            name, content = members[pickle]
            change: Callable[[], bytes] = chance.choice(
                [
                    lambda: _bits_flipped(content, 0, len(content), chance),
                    lambda: _overwritten(content, chance.randrange(len(content)), chance.choice([1, 4]), chance),
                    lambda: content[: chance.randrange(len(content))],
                ]
            )
            members[pickle] = (name, change())
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for i, (name, content) in enumerate(members):
            archive.writestr(zipfile.ZipInfo(name), content, method if i == at else zipfile.ZIP_STORED)
    return Mutation(kind, kind == "bits of a member" and at != pickle, buffer.getvalue())
