"""WebDataset shards, as annotations: tar archives in which the files of a sample share a name.

The format is that of the library webdataset. Shards are looked through once, and samples then read
from where they lie, in any order: so a run can go on with the very next sample, and its order does
not depend on the number of workers, which streams of shards do not offer.
"""

from __future__ import annotations

import itertools
import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory

from .folders import PROBLEM, WHERE, Record, kind_of, plain_text
from .skipped import SampleError

STORED = "__stored__"
"""Entry of a record: for each of its files the shard, the place in it and the size in bytes."""

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_ARCHIVE = re.compile(r"\.(tar(\.(gz|bz2|xz|zst))?|tgz)$")
_TENSORS = ("latent", "text_fea")
_PAST_TEXT = 2**22  # bytes; a caption is shorter


def are_shards(source: str | PathLike[str]) -> bool:
    """Whether `source` names shards: a `.tar`, a pattern of such, or a folder of them."""
    path = Path(source)
    if path.is_dir():
        return any(path.glob("*.tar"))
    return _ARCHIVE.search(path.name) is not None


def shard_annotations(source: str | PathLike[str]) -> list[Record]:
    """The samples of shards: `{"video", "text"}`, `{"image", "text"}`, `{"latent", "text_fea"}`.

    The files of a sample stand one after another in a shard and have the same name up to the first
    dot: `0.mp4` with `0.txt`, or with `0.json`, whose entries become those of the sample (`caption`
    counts as `text`); `0.latent.safetensors`, `0.text_fea.pt`. What cannot be understood has an
    entry `PROBLEM`, as have a shard without samples and one that ends early.

    Args:
        source: A shard; several, as `clips-{000..012}.tar`; or a folder of shards.

    Returns:
        Records in the order of the shards and of the files in them.

    Raises:
        FileNotFoundError: There is no such shard.
        ValueError: A shard is compressed.
    """
    return [record for shard in _files(source) for record in _samples(shard)]


@contextmanager
def member_copy(name: str, shard: str, start: int, size: int) -> Iterator[Path]:
    """A copy of a part of a shard as a file of that name, which is deleted afterwards.

    Raises:
        SampleError: The shard cannot be read.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / Path(name).name
        try:
            with open(shard, "rb") as source, path.open("wb") as copy:
                source.seek(start)
                while size > 0 and (part := source.read(min(size, 2**20))):
                    size -= copy.write(part)
        except OSError as error:
            raise SampleError("unreadable file", f"cannot read {shard}: {error}") from error
        if size:
            raise SampleError("damaged shard", f"{shard} ends within {name}")
        yield path


def _files(source: str | PathLike[str]) -> list[Path]:
    path = Path(source)
    found = sorted(path.glob("*.tar")) if path.is_dir() else [*map(Path, _expanded(str(source)))]
    for file in found:
        if not file.is_file():
            raise FileNotFoundError(f"no such shard: {str(file)!r}")
        if file.suffix != ".tar":
            raise ValueError(f"{file} is compressed, and cannot be read at any place: unpack it")
    return found


def _expanded(pattern: str) -> list[str]:
    """`a-{08..10}.tar` as `a-08.tar`, `a-09.tar`, `a-10.tar`."""
    found = _RANGE.search(pattern)
    if found is None:
        return [pattern]
    first, last = found[1], found[2]
    numbers = (str(n).zfill(len(first)) for n in range(int(first), int(last) + 1))
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [name for number in numbers for name in _expanded(f"{before}{number}{after}")]


def _samples(shard: Path) -> Iterator[Record]:
    problem = None
    count = 0
    try:
        with tarfile.open(shard, "r:") as archive:
            members = _named(archive)
            for key, files in itertools.groupby(members, lambda member: member[0]):
                record = _sample(archive, shard, [(ending, info) for _, ending, info in files])
                if record:
                    count += 1
                    yield {WHERE: f"{shard}/{key}"} | record
            if not _ends_here(shard, archive.offset):
                problem = "damaged shard", "it goes on with something else, or ends early"
    except tarfile.ReadError as error:
        problem = "damaged shard", f"it ends early, or is not a tar archive: {error}"
        if shard.stat().st_size == 0:
            problem = "empty shard", "there is nothing in it"
    except OSError as error:
        problem = "unreadable file", str(error)
    if problem is None and count == 0:
        problem = "empty shard", "there are no samples in it"
    if problem is not None:
        yield {WHERE: str(shard), PROBLEM: problem}


def _ends_here(shard: Path, place: int) -> bool:
    """Whether there is the mark of an archive's end, zeros, and not a damaged header or nothing."""
    with shard.open("rb") as file:
        file.seek(place)
        return file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)


def _named(archive: tarfile.TarFile) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Name up to the first dot, ending, and entry, of the files in an archive."""
    for info in archive:
        folder, slash, name = info.name.rpartition("/")
        key, dot, ending = name.partition(".")
        if info.isfile() and key and dot and not key.startswith("__"):
            yield folder + slash + key, ending.lower(), info


def _sample(
    archive: tarfile.TarFile, shard: Path, files: Iterable[tuple[str, tarfile.TarInfo]]
) -> Record:
    record: Record = {}
    stored = {}
    for ending, info in files:
        column = next((name for name in _TENSORS if ending.startswith(f"{name}.")), None)
        column = column or kind_of(info.name)
        if column is not None:
            record[column] = f"{shard}/{info.name}"
            stored[column] = str(shard), info.offset_data, info.size
        elif ending == "txt":
            record["text"] = plain_text(_content(archive, info))
        elif ending == "json":
            record = _entries(_content(archive, info)) | record
    if "caption" in record:
        record.setdefault("text", record["caption"])
    return record | {STORED: stored} if record else {}


def _entries(content: bytes) -> Record:
    try:
        found = json.loads(content.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        return {PROBLEM: ("no valid JSON", f"no valid JSON: {error}")}
    if not isinstance(found, dict):
        return {PROBLEM: ("no valid JSON", f"it holds a {type(found).__name__}, not an object")}
    return found


def _content(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(info)
    return b"" if file is None else file.read(_PAST_TEXT)
