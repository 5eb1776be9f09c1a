"""The header of a GGUF file: its metadata, and where its tensors are.

A GGUF file begins with a magic number, a version and two counts; then come keys with their values,
then names, shapes, types and places of tensors, then these tensors. All numbers are little-endian
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).

A file comes from somebody else, so nothing that it states is believed: each length is compared with
what is left of the file before anything is read by it, and a header that is larger than any in use
is refused. What is wrong raises a CheckpointError that names the key or the tensor.
"""

from __future__ import annotations

import itertools
import math
import os
import stat
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from engine.checkpoint.json_file import CheckpointError, Keys, shown

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # which differ in nothing that is read here
MOST_BYTES = 64 << 20  # of a header; that of a vocabulary of 262,144 tokens has a tenth
LEAST_BYTES = 1 << 20  # that are read at once
MOST_ITEMS = 1 << 22  # of an array that is read
MOST_TEXT = 1 << 20  # bytes of a text that is read; a chat template has a hundredth
MOST_ENTRIES = 1 << 16  # keys, or tensors; a model of a thousand layers has a fifth
MOST_DIMS = 4
MOST_SIZE = 2**31 - 1  # of a dimension
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_STRING, _ARRAY = 8, 9
# The other types of values, with their codes in `struct`.
_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_SIZES = {number: struct.calcsize(code) for number, code in _CODES.items()}


class Packing(NamedTuple):
    """How a type of tensor stores its weights: in blocks of so many, and of so many bytes."""

    weights: int
    bytes: int


# The types that are supported, by their names and their numbers in a file (ggml's ggml_type).
PACKINGS = {
    "F32": Packing(1, 4),
    "F16": Packing(1, 2),
    "BF16": Packing(1, 2),
    "Q4_0": Packing(32, 18),
    "Q4_1": Packing(32, 20),
    "Q5_0": Packing(32, 22),
    "Q5_1": Packing(32, 24),
    "Q8_0": Packing(32, 34),
    "Q2_K": Packing(256, 84),
    "Q3_K": Packing(256, 110),
    "Q4_K": Packing(256, 144),
    "Q5_K": Packing(256, 176),
    "Q6_K": Packing(256, 210),
    "IQ4_NL": Packing(32, 18),
    "IQ4_XS": Packing(256, 136),
}
_NAMES = {
    **{0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1"},
    **{10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS"},
    **{17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S"},
    **{23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M"},
    **{30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4"},
}


class StoredTensor(NamedTuple):
    """Where a tensor stands in the file, and as what: a name of PACKINGS."""

    shape: tuple[int, ...]  # the outermost dimension first, as torch has it
    packing: str
    start: int  # of its bytes in the file
    num_bytes: int


class Metadata(Mapping[str, Any]):
    """The keys of a file. A value is read when it is asked for: whole numbers, floats, booleans,
    texts, and lists of these.

    Asking raises CheckpointError for a text that is no UTF-8 or beyond MOST_TEXT, and for a list
    beyond MOST_ITEMS.
    """

    def __init__(self, data: bytes, places: Mapping[str, tuple[int, int]], where: str) -> None:
        self._data = data
        self._places = places  # the type of each key's value, and where that is
        self._where = where

    def __getitem__(self, key: str) -> Any:
        kind, at = self._places[key]
        if kind == _STRING:
            return self._text(key, at)[0]
        if kind != _ARRAY:
            return struct.unpack_from("<" + _CODES[kind], self._data, at)[0]
        (kind,), (count,) = _U32.unpack_from(self._data, at), _U64.unpack_from(self._data, at + 4)
        if count > MOST_ITEMS:
            raise CheckpointError(f"{self._where}: {key} has {count} items, over {MOST_ITEMS}")
        if kind == _STRING:
            return list(self._texts(key, at + 12, count))
        return list(struct.unpack_from(f"<{count}{_CODES[kind]}", self._data, at + 12))

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def _texts(self, key: str, at: int, count: int) -> Iterator[str]:
        for _ in range(count):
            text, at = self._text(key, at)
            yield text

    def _text(self, key: str, at: int) -> tuple[str, int]:
        """Returns a text and where what follows it begins."""
        length = _U64.unpack_from(self._data, at)[0]
        if length > MOST_TEXT:
            raise CheckpointError(f"{self._where}: {key} has {length} bytes, over {MOST_TEXT}")
        end = at + 8 + length
        try:
            return self._data[at + 8 : end].decode(), end
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self._where}: {key} holds what is no UTF-8: {error}") from None


class Header(NamedTuple):
    """What a file's header says. `where` begins error messages: the file's name."""

    path: Path
    where: str
    metadata: Metadata
    tensors: Mapping[str, StoredTensor]
    state: tuple[int, ...]  # by which the file is known again

    @property
    def keys(self) -> Keys:
        """The metadata, to be read by type."""
        return Keys(self.metadata, self.where)

    def read(self, tensor: StoredTensor, start: int, num_bytes: int) -> bytearray:
        """Returns some bytes of a tensor, the first of them its byte `start`. Raises
        CheckpointError where the file is no longer the one whose header was read.
        """
        found = bytearray(num_bytes)
        try:
            with self.path.open("rb") as file:
                file.seek(tensor.start + start)
                count = file.readinto(found)
                state = _state(file)
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error.strerror}") from error
        if state != self.state or count != num_bytes:
            raise CheckpointError(f"{self.where} was changed or replaced while it was being read")
        return found


def read_header(path: Path) -> Header:
    """Returns the header of a GGUF file. Raises CheckpointError for what is none, or is not whole,
    or holds a tensor of a type that is not supported.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise CheckpointError(f"{path} is no file")
        with path.open("rb") as file:
            return _read(_Reader(file, found.st_size, path.name), path, _state(file))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def _state(file: IO[bytes]) -> tuple[int, ...]:
    """Returns which file it is, and what changes when its content does."""
    found = os.fstat(file.fileno())
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _read(reader: _Reader, path: Path, state: tuple[int, ...]) -> Header:
    num_tensors, num_keys = _counts(reader, path)
    places = _keys(reader, num_keys)
    metadata = Metadata(reader.data[: reader.at], places, path.name)
    keys = Keys(metadata, path.name)
    if keys.whole("split.count", 1, least=0) > 1:
        raise keys.wrong(
            "split.count",
            "says that it is a part of several, which are not read: join them first"
            " (llama-gguf-split --merge)",
        )
    alignment = keys.whole("general.alignment", 32, least=8, most=1 << 20)
    return Header(path, path.name, metadata, _tensors(reader, num_tensors, alignment), state)


class _Reader:
    """Reads a header from its beginning, and never beyond the bytes that there are."""

    def __init__(self, file: IO[bytes], size: int, where: str) -> None:
        self._file = file
        self.data = b""  # what was read of it
        self.size = size  # of the file
        self.where = where
        self.at = 0

    def skip(self, count: int, what: str) -> int:
        """Passes over some bytes, and returns where they begin."""
        start, self.at = self.at, self.at + count
        if not self._has(self.at):
            if self.at <= self.size:
                raise CheckpointError(f"{self.where}: its header takes over {MOST_BYTES} bytes")
            raise CheckpointError(f"{self.where} ends too early: {what} would go beyond its end")
        return start

    def _has(self, end: int) -> bool:
        """Returns whether there are so many bytes. What was not read of them is read, and more."""
        if len(self.data) < end <= min(self.size, MOST_BYTES):
            self.data += self._file.read(max(end, 2 * len(self.data), LEAST_BYTES) - len(self.data))
        return end <= len(self.data)

    def u32(self, what: str) -> int:
        at = self.skip(4, what)
        value: int = _U32.unpack_from(self.data, at)[0]
        return value

    def u64(self, what: str) -> int:
        at = self.skip(8, what)
        value: int = _U64.unpack_from(self.data, at)[0]
        return value

    def name(self, what: str) -> str:
        """Returns the name of a key or a tensor."""
        length = self.u64(what)
        start = self.skip(length, what)
        try:
            return self.data[start : start + length].decode()
        except UnicodeDecodeError:
            raise CheckpointError(f"{self.where}: {what} has a name that is no UTF-8") from None

    def skip_texts(self, count: int, what: str) -> None:
        at = self.at
        for _ in range(count):
            if at + 8 > len(self.data) and not self._has(at + 8):
                break
            at += 8 + _U64.unpack_from(self.data, at)[0]
        self.skip(max(at, self.at + 8 * count) - self.at, what)


def _counts(reader: _Reader, path: Path) -> tuple[int, int]:
    """Returns how many tensors and how many keys there are."""
    magic = reader.u32("its beginning").to_bytes(4, "little")
    if magic != MAGIC:
        raise CheckpointError(f"{path} is no GGUF file: it begins with {shown(magic)}")
    version = reader.u32("its version")
    if version not in VERSIONS:
        is_swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
        found = "is stored with the other order of bytes" if is_swapped else f"is {version}"
        raise CheckpointError(
            f"{path}: its GGUF version {found}; {' and '.join(map(str, VERSIONS))} are supported"
        )
    counts = reader.u64("its number of tensors"), reader.u64("its number of keys")
    if max(counts) > MOST_ENTRIES:
        raise CheckpointError(
            f"{path} states {counts[0]} tensors and {counts[1]} keys; {MOST_ENTRIES} is the most"
        )
    return counts


def _keys(reader: _Reader, count: int) -> dict[str, tuple[int, int]]:
    """Returns the type of each key's value, and where the value is."""
    places: dict[str, tuple[int, int]] = {}
    for number in range(count):
        key = reader.name(f"key {number + 1} of {count}")
        what = f"the value of {shown(key)}"
        kind = reader.u32(what)
        if key in places:
            raise CheckpointError(f"{reader.where}: the key {shown(key)} is there twice")
        places[key] = kind, reader.at
        if kind == _STRING:
            reader.skip(reader.u64(what), what)
        elif kind == _ARRAY:
            _skip_array(reader, what)
        elif kind in _SIZES:
            reader.skip(_SIZES[kind], what)
        else:
            raise CheckpointError(f"{reader.where}: {what} is of type {kind}, which is none")
    return places


def _skip_array(reader: _Reader, what: str) -> None:
    kind, count = reader.u32(what), reader.u64(what)
    if kind == _STRING:
        reader.skip_texts(count, what)
    elif kind in _SIZES:
        reader.skip(_SIZES[kind] * count, what)
    else:
        raise CheckpointError(f"{reader.where}: {what} is a list of type {kind}, which is none")


def _tensors(reader: _Reader, count: int, alignment: int) -> dict[str, StoredTensor]:
    """Returns all tensors by their names, each within the file and none within another."""
    stated = {}
    for number in range(count):
        name = reader.name(f"tensor {number + 1} of {count}")
        if name in stated:
            raise CheckpointError(f"{reader.where}: the tensor {shown(name)} is there twice")
        stated[name] = _tensor(reader, name)
    begin = -(-reader.at // alignment) * alignment  # where the first may be
    tensors = {n: tensor._replace(start=begin + tensor.start) for n, tensor in stated.items()}
    for name, tensor in tensors.items():
        if tensor.start % alignment:
            raise CheckpointError(
                f"{reader.where}: the tensor {shown(name)} begins at byte {tensor.start}, which is"
                f" no multiple of {alignment}"
            )
        if tensor.start + tensor.num_bytes > reader.size:
            raise CheckpointError(
                f"{reader.where} ends too early: the tensor {shown(name)} would go beyond its end"
            )
    placed = sorted(tensors.items(), key=lambda entry: entry[1].start)
    for (name, tensor), (other, after) in itertools.pairwise(placed):
        if tensor.start + tensor.num_bytes > after.start:
            raise CheckpointError(
                f"{reader.where}: the tensors {shown(name)} and {shown(other)} overlap"
            )
    return tensors


def _tensor(reader: _Reader, name: str) -> StoredTensor:
    """Reads an entry of the table of tensors, whose `start` counts from the first's."""
    what = f"the tensor {shown(name)}"
    num_dims = reader.u32(what)
    if not 1 <= num_dims <= MOST_DIMS:
        raise CheckpointError(f"{reader.where}: {what} has {num_dims} dimensions, not 1 to 4")
    shape = tuple(reader.u64(what) for _ in range(num_dims))[::-1]
    if not all(1 <= size <= MOST_SIZE for size in shape):
        raise CheckpointError(f"{reader.where}: {what} has the shape {shown(list(shape))}")
    number = reader.u32(what)
    kind = _NAMES.get(number, f"type {number}")
    if kind not in PACKINGS:
        raise CheckpointError(
            f"{reader.where}: {what} is {kind}, which is not supported ({', '.join(PACKINGS)} are)"
        )
    packing = PACKINGS[kind]
    if shape[-1] % packing.weights:
        raise CheckpointError(
            f"{reader.where}: {what} is {kind}, whose rows are multiples of {packing.weights}"
            f" weights, but has the shape {shown(list(shape))}"
        )
    return StoredTensor(
        shape, kind, reader.u64(what), math.prod(shape) // packing.weights * packing.bytes
    )
