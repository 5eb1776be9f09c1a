"""Has a served model write the corpus of the embedded model: simple stories and two-line chats.

The writer is an instruction-tuned model of SmolLM2's kind behind a Niyama server, and this is that
server's nightly batch: thousands of calls of the tier ``batch``, some dozens at once.  Every call
begins from words that are drawn from lists with a seed (``prompts.toml``), so hardly two are alike
and a run can be taken up where it ended.  A story's opening is made of such words; the writer goes
on from there, and then writes a last line, whose beginning is drawn too.  What is too short,
repeats itself, has no end or is no plain English is left out, as are texts with words that hardly
any other text has.

Each text goes to ``written.jsonl`` as it comes, the kept ones at the end to ``stories.txt`` and
``chats.txt``, with a form feed between two.  The corpus is not kept in the repository;
``README.md`` beside this file has the commands, and what a run printed.  A script: nothing imports
it, so it alone under ``engine`` may speak to a server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from niyama.client import AsyncClient, NiyamaError

BREAK = "\f"
FEWEST_OF_A_WORD = 3  # texts that a word stands in, else those that have it are left out
CHILDREN = 0.3  # share of stories about a girl or boy, instead of an animal
STORIES_TO_A_CHAT = 3  # every third story answers a user who asked for it

PROMPTS = tomllib.loads(Path(__file__).with_name("prompts.toml").read_text(encoding="utf-8"))
WORDS: dict[str, list[str]] = PROMPTS["words"]
TURN = "<|im_start|>{role}\n{content}<|im_end|>\n"
TO_ANSWER = "<|im_start|>assistant\n"


@dataclass(frozen=True)
class Text:
    """A text as it was written, from which draw, and what it was asked for."""

    kind: str  # "story" or "chat"
    draw: int  # numbers the draws of its kind
    asked: str  # what a user would have said
    text: str
    tokens: int  # written by the writer, in its own tokens


def words_of(rng: random.Random) -> dict[str, str]:
    """Returns one word for each of the names that the sentences have in braces."""
    is_she = rng.random() < 0.5
    he, his, him = ("she", "her", "her") if is_she else ("he", "his", "him")
    name = rng.choice(WORDS["girls" if is_she else "boys"])
    who, other = rng.sample(WORDS["characters"], 2)
    if rng.random() < CHILDREN:
        who = "girl" if is_she else "boy"
    thing, mood = rng.choice(WORDS["things"]), rng.choice(list(PROMPTS["moods"]))
    return {
        "he": he,
        "He": he.capitalize(),
        "his": his,
        "him": him,
        "name": name,
        "friend": rng.choice([each for each in WORDS["girls"] + WORDS["boys"] if each != name]),
        "who": who,
        "other": other,
        "quality": rng.choice(WORDS["qualities"]),
        "thing": thing,
        "mood": mood,
        "mood_answer": PROMPTS["moods"][mood],
        "place": rng.choice(WORDS["places"]),
        "like": rng.choice(WORDS["likes"]),
    }


def said(sentence: str, words: dict[str, str]) -> str:
    """Returns the sentence with the words in their places, and "an" where a vowel follows."""
    made = sentence.format(**words)
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", made)


def conversation(system: str, user: str) -> str:
    """Returns a prompt in the writer's own format, for its answer to follow."""
    turns = (("system", system), ("user", user))
    return "".join(TURN.format(role=role, content=text) for role, text in turns) + TO_ANSWER


def whole_sentences(text: str) -> str:
    """Returns the text up to the last end of a sentence that is not within quotes."""
    ends = (found.end() for found in re.finditer(r'[.!?]"?(?=\s|$)', text))
    whole = [end for end in ends if not text.count('"', 0, end) % 2]
    return text[: whole[-1]] if whole else ""


class Writer:
    """Asks the server, and counts what it wrote."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self.calls = self.tokens = self.on_time = 0

    async def write(
        self, prompt: str, seed: int, max_tokens: int, stop: Sequence[str]
    ) -> tuple[str, int]:
        """Returns the continuation of the prompt, and its tokens."""
        result = await self._client.complete(
            prompt,
            tier="batch",
            seed=seed,
            max_tokens=max_tokens,
            stop=stop,
            temperature=0.6,
            min_p=0.1,
            repetition_penalty=1.08,  # without it the writer repeats itself
        )
        tokens = result.finished.usage.output_tokens
        self.calls += 1
        self.tokens += tokens
        self.on_time += result.finished.on_time
        return result.text, tokens

    async def story(self, number: int) -> Text:
        """Returns the story of that draw."""
        rng = random.Random(f"story {number}")
        words = words_of(rng)
        opening = said(rng.choice(PROMPTS["stories"]["openings"]), words)
        ending = said(rng.choice(PROMPTS["stories"]["endings"]), words)
        asked = said("Tell me a story about a {quality} {who} and a {thing}.", words)
        prompt = conversation(PROMPTS["systems"]["story"], asked)
        middle, first_tokens = await self.write(prompt + opening, number, 64, ())
        told = plain(opening + whole_sentences(plain_quotes(middle))) + "\n" + ending
        last, last_tokens = await self.write(prompt + told, number, 40, ("\n",))
        return Text("story", number, asked, plain(told + last), first_tokens + last_tokens)

    async def chat(self, number: int) -> Text:
        """Returns the chat of that draw."""
        rng = random.Random(f"chat {number}")
        words = words_of(rng)
        asked, opening = (said(part, words) for part in rng.choice(PROMPTS["chats"]["pairs"]))
        prompt = conversation(PROMPTS["systems"]["chat"], asked)
        answer, tokens = await self.write(prompt + opening, number, 40, ("\n",))
        return Text("chat", number, asked, plain(opening + answer), tokens)


def ended(text: Text) -> Text:
    """Returns the text without what its last line has after the last whole sentence."""
    before, newline, last = text.text.rpartition("\n")
    return replace(text, text=before + newline + whole_sentences(last))


def plain_quotes(text: str) -> str:
    return text.translate(str.maketrans("‘’“”—–", "''\"\"--"))


def plain(text: str) -> str:
    """Returns the text with typewriter's quotes, one space between words, a paragraph in a line."""
    return re.sub(r"\s*\n\s*", "\n", re.sub(r"[ \t]+", " ", plain_quotes(text))).strip()


def words_in(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def fault_of(text: Text) -> str | None:
    """Returns why a text is left out, None where it is kept."""
    words = words_in(text.text)
    runs = Counter(zip(words, words[1:], words[2:], words[3:], strict=False))
    fewest, most = (45, 150) if text.kind == "story" else (4, 60)
    if not re.search(r'[.!?]"?\Z', text.text):
        return "has no end"
    if not fewest <= len(words) <= most:
        return "is too short or too long"
    if re.search(r"[^A-Za-z0-9 .,!?'\"\n:;-]", text.text) or re.search(r"\d{3}", text.text):
        return "is no plain English"
    if re.search(r"\b(AI|assistant|SmolLM|Hugging|model|language)\b", text.text):
        return "speaks of the writer"
    if text.text.count('"') % 2:
        return "has a quote that does not end"
    if any(count > 2 for count in runs.values()):
        return "repeats itself"
    return None


def kept_of(texts: Iterable[Text]) -> tuple[list[Text], Counter[str]]:
    """Returns the texts that are kept, each but once, and how many were left out for what."""
    faults: Counter[str] = Counter()
    sound: dict[tuple[str, str], Text] = {}
    for text in map(ended, texts):
        fault = fault_of(text) or ("is there already" if (text.asked, text.text) in sound else None)
        if fault:
            faults[fault] += 1
        else:
            sound[text.asked, text.text] = text
    texts_with = Counter(word for text in sound.values() for word in set(words_in(text.text)))
    kept = [
        text
        for text in sound.values()
        if all(texts_with[word] >= FEWEST_OF_A_WORD for word in words_in(text.text))
    ]
    faults["has a rare word"] = len(sound) - len(kept)
    return kept, faults


def read_written(path: Path) -> list[Text]:
    """Returns what earlier runs wrote. A last line without an end is taken out of the file."""
    path.touch()
    with path.open("r+b") as file:
        written = file.read()
        whole = written[: written.rfind(b"\n") + 1]
        file.truncate(len(whole))
    return [Text(**json.loads(line)) for line in whole.splitlines()]


async def write_all(
    servers: Sequence[str], path: Path, *, stories: int, chats: int, at_once: int
) -> None:
    """Adds to the file what is not in it of so many stories and chats, and prints how it goes.

    Each server has `at_once` calls in flight. Raises a group of NiyamaError where calls fail: the
    next run goes on from there.
    """
    written = {(text.kind, text.draw) for text in read_written(path)}
    draws = [("story", number) for number in range(stories)]
    draws += [("chat", number) for number in range(chats)]
    random.Random(0).shuffle(draws)
    left = iter([draw for draw in draws if draw not in written])
    started, count = time.monotonic(), 0

    async with AsyncExitStack() as stack:
        out = stack.enter_context(path.open("a", encoding="utf-8"))
        clients = [await stack.enter_async_context(AsyncClient(each)) for each in servers]
        writers = [Writer(client) for client in clients]

        async def work(writer: Writer) -> None:
            nonlocal count
            for kind, number in left:
                text = await (writer.story(number) if kind == "story" else writer.chat(number))
                out.write(json.dumps(asdict(text)) + "\n")
                count += 1
                if count % 200 == 0:
                    out.flush()
                    tokens = sum(each.tokens for each in writers)
                    pace = tokens / (time.monotonic() - started)
                    print(f"texts {count} tokens {tokens} tokens/s {pace:.0f}", flush=True)

        async with asyncio.TaskGroup() as group:
            for writer in writers * at_once:
                group.create_task(work(writer))
        took_s = time.monotonic() - started
        tokens = sum(writer.tokens for writer in writers)
        figures = {
            "servers": len(writers),
            "calls": sum(writer.calls for writer in writers),
            "calls_on_time": sum(writer.on_time for writer in writers),
            "tokens": tokens,
            "hours": round(took_s / 3600, 3),
            "tokens_per_s": round(tokens / took_s, 1),
        }
        print(json.dumps(figures))


def write_kept(texts: list[Text], out: Path) -> None:
    """Writes the kept texts into the two files and prints what they have."""
    kept, faults = kept_of(texts)
    for fault, count in sorted(faults.items()):
        print(f"left out {count}: {fault}")
    for kind, name in (("story", "stories.txt"), ("chat", "chats.txt")):
        documents = [
            f"User: {text.asked}\nAssistant: {text.text}"
            if kind == "chat" or not text.draw % STORIES_TO_A_CHAT
            else text.text
            for text in sorted(kept, key=lambda text: text.draw)
            if text.kind == kind
        ]
        (out / name).write_text(f"\n{BREAK}\n".join(documents) + "\n", encoding="utf-8")
        print(f"{name}: {len(documents)} texts, {(out / name).stat().st_size} bytes")
    tokens = sum(text.tokens for text in kept)
    print(f"tokens of the writer: {sum(t.tokens for t in texts)} written, {tokens} kept")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="the folder for the text files")
    parser.add_argument("--server", nargs="+", default=["localhost:50051"])
    parser.add_argument("--stories", type=int, default=13_000)
    parser.add_argument("--chats", type=int, default=3_000)
    parser.add_argument("--at-once", type=int, default=64, help="calls in flight to each server")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "written.jsonl"
    sizes = {"stories": args.stories, "chats": args.chats, "at_once": args.at_once}
    try:
        asyncio.run(write_all(args.server, path, **sizes))
    except ExceptionGroup as group:
        failed, defects = group.split(NiyamaError)
        if failed is None or defects:
            raise
        print(f"corpus: {failed.exceptions[0]}; run it again to go on", file=sys.stderr)
        return 1
    write_kept(read_written(path), args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
