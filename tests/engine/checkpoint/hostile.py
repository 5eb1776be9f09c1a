"""Text that tokenizers get wrong: made the same each time, of every kind that Unicode knows."""

from __future__ import annotations

import random
import unicodedata
from collections import defaultdict
from functools import cache
from pathlib import Path

PARTS = [
    *(
        "\x00",
        "\t",
        "\n",
        "\r\n",
        "\r",
        "\n\n\n",
        " ",
        "  ",
        " " * 9,
        "\t\t",
        "\xa0",
        "\u3000",
        "\u2028",
    ),
    *(
        "\u2581",
        "\u2581\u2581",
        " \u2581",
        "\u2581 ",
        "_",
        "\ufffd",
        "\ufeff",
        "\u200b",
        "\u200d",
        "\x1c",
    ),
    *("<s>", "</s>", "<unk>", "<pad>", "<|end|>", "<", "</s", "|>", "<s", "<<s>>", "⁇", " ⁇ "),
    *("<0x41>", "<0x0A>", "<0x", "0x41>", "<0x<0x41>>", "<0x4a>"),
    *("e\u0301", "\u0301", "é", "a\u0327\u0301", "ﬁ", "ａ", "Å", "K", "²", "Ⓐ", "ß", "İ", "ı"),
    *("한국", "\u1112\u1161\u11ab", "漢字", "が", "か\u3099", "ไทย", "हिन्दी", "தமிழ்"),
    *("🙂", "👩\u200d👩\u200d👧\u200d👦", "👍🏽", "🇩🇪", "❤\ufe0f", "1\ufe0f\u20e3"),
    *("שלום", "مرحبا", "\u202e", "\u200f", "\u2066x\u2069"),
    *(
        "aaaa",
        "----",
        "====",
        "....",
        "thethethe",
        "x" * 300,
        "0123456789",
        "3.14",
        "don't",
        "C:\\n",
    ),
    *("the", "word", "fox", "Zwölf", "quick", "reader", ".", ",", "The", "over the", "lazy dog"),
]


@cache
def characters() -> str:
    """Characters of every category that Unicode has, but for halves of pairs, which are no text."""
    by_category = defaultdict(list)
    for code in range(0x110000):
        by_category[unicodedata.category(chr(code))].append(chr(code))
    del by_category["Cs"]
    rng = random.Random(0)
    chosen = [
        char
        for _, chars in sorted(by_category.items())
        for char in rng.sample(chars, min(60, len(chars)))
    ]
    rng.shuffle(chosen)
    return "".join(chosen)


@cache
def texts(number: int) -> list[str]:
    """Texts of a few parts each, and a few that are long."""
    rng = random.Random(number)
    made = ["", *PARTS]
    for _ in range(number):
        parts = rng.choices([*PARTS, rng.choice(characters())], k=rng.randrange(1, 12))
        made.append("".join(part + rng.choice(["", "", " "]) for part in parts))
    whole = "".join(made)
    return [
        *made,
        characters(),
        " ".join(characters()),
        whole,
        "".join(whole.split()),
        " " * 3000,
        "ab" * 3000,
    ]


def documents() -> str:
    """What this project has to read, as one text."""
    root = Path(__file__).parents[3]
    paths = sorted(
        [*root.glob("*.md"), *root.glob("docs/**/*.md"), *root.glob("engine/checkpoint/*.py")]
    )
    return "".join(path.read_text(encoding="utf-8") for path in paths)
