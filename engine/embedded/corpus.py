"""Makes the training corpus of the embedded model from four Debian packages.

The packages and the standing of their texts (each package's own copyright file says so):

* ``bible-kjv`` and ``bible-kjv-text``: the King James Bible, copyright expired;
* ``r-cran-janeaustenr``: the six novels of Jane Austen, public domain (the R code is MIT);
* ``jargon-text``: the Jargon File 4.4.7, placed in the public domain by its authors;
* ``dict-devil``: Ambrose Bierce, The Devil's Dictionary, public domain.

Only Python's standard library is used.  Each text becomes one UTF-8 file: a paragraph is one
line, a form feed stands between documents (chapters or groups of entries).  The corpus is not
kept in the repository; ``README.md`` beside this file has the commands.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import re
import subprocess
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

BREAK = "\f"
AUSTEN = "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
JARGON = "usr/share/doc/jargon-text/jargon.txt.gz"
DEVIL = "usr/share/dictd/devil.dict.dz"
CHARSXP = 9  # R's type number of one string


def bible(program: str = "bible") -> list[str]:
    """Returns the Bible by chapters, as the package's program prints it, without verse numbers."""
    done = subprocess.run(
        [program, "-f", "Gen1:1-Rev22:21"], check=True, capture_output=True, text=True
    )
    verses = (re.match(r"(\w+?\d+):\d+ (.*)", line) for line in done.stdout.splitlines())
    found = ((verse[1], verse[2].strip()) for verse in verses if verse)
    chapters = itertools.groupby(found, key=lambda pair: pair[0])
    return ["\n".join(text for _, text in group) for _, group in chapters]


def r_strings(database: bytes) -> Iterator[list[str]]:
    """Yields the character vectors of an R lazy-load database of serialised version 3 objects."""
    at = 0
    while at < len(database):
        inflate = zlib.decompressobj()
        data = inflate.decompress(database[at + 4 :])  # after the four-byte length
        at = len(database) - len(inflate.unused_data)
        place = 14 + int.from_bytes(data[14:18], "big") + 4  # the header names the encoding
        if data[place + 3] != 16:  # not a character vector
            continue
        count = int.from_bytes(data[place + 4 : place + 8], "big")
        place += 8
        lines = []
        for _ in range(count):
            if data[place + 3] != CHARSXP:
                raise ValueError("not a string in an R character vector")
            size = int.from_bytes(data[place + 4 : place + 8], "big")
            lines.append(data[place + 8 : place + 8 + size].decode("utf-8"))
            place += 8 + size
        yield lines


def paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """Yields the runs of non-blank lines, each joined to one line."""
    for blank, run in itertools.groupby(lines, key=lambda line: not line.strip()):
        if not blank:
            yield re.sub(r"\s+", " ", " ".join(run)).strip()


def austen(root: Path) -> list[str]:
    """Returns the novels by chapters."""
    chapters: list[str] = []
    for novel in r_strings((root / AUSTEN).read_bytes()):
        chapter: list[str] = []
        for text in paragraphs(novel):
            if re.match(r"(CHAPTER|Chapter) [IVXL\d]+\.?$", text):
                chapters.append("\n".join(chapter))
                chapter = []
            elif not re.match(r"(VOLUME|Volume) [IVX]+$", text):
                chapter.append(text.replace("_", "").replace("--", " -- "))
        chapters.append("\n".join(chapter))
    return [re.sub(" +", " ", chapter) for chapter in chapters if len(chapter) > 500]


def grouped(entries: Iterable[str], size: int) -> list[str]:
    """Gathers short entries into documents of about `size` characters."""
    documents, held = [], ""
    for entry in entries:
        held += entry + "\n"
        if len(held) > size:
            documents.append(held.strip())
            held = ""
    return [*documents, held.strip()] if held.strip() else documents


def is_prose(text: str) -> bool:
    """Returns whether a paragraph reads as prose, unlike a table, an address or an index."""
    letters = sum(char.isalpha() or char in " ,.'" for char in text)
    return len(text) > 60 and letters > 0.9 * len(text) and text[-1] in '.!?")”:'


def jargon(root: Path) -> list[str]:
    """Returns the prose of the Jargon File, without the braces that mark its links."""
    text = gzip.decompress((root / JARGON).read_bytes()).decode("utf-8")
    text = re.sub(r"[{}]", "", text).translate(str.maketrans("‘’“”—", "''\"\"-"))
    return grouped(filter(is_prose, paragraphs(text.splitlines())), 4000)


def devil(root: Path) -> list[str]:
    """Returns the Devil's Dictionary without its notice and its verses."""
    text = gzip.decompress((root / DEVIL).read_bytes()).decode("ascii", "replace")
    text = re.sub(r"[{}_]", "", text[text.index("ABASEMENT, n.") :])
    plain = (line for line in text.splitlines() if not line.startswith("    "))
    return grouped(filter(is_prose, paragraphs(plain)), 4000)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="the folder for the text files")
    parser.add_argument("--root", type=Path, default=Path("/"), help="where packages lie unpacked")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    texts = {
        "bible": bible(),
        "austen": austen(args.root),
        "jargon": jargon(args.root),
        "devil": devil(args.root),
    }
    for name, documents in texts.items():
        path = args.out / f"{name}.txt"
        path.write_text(f"\n{BREAK}\n".join(documents) + "\n", encoding="utf-8")
        print(f"{path.name}: {len(documents)} documents, {path.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
