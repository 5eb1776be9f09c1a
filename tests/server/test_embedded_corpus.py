"""The corpus of the embedded model, written by the embedded model itself, on a real server."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from engine.embedded import corpus
from engine.embedded.corpus import Text
from tests.server.conftest import Running

GOOD = (
    "Once upon a time, there was a little cat named Tom. Tom loved to sing. One day, he found a "
    "bell in the park. He took it home and showed it to his mom. She liked the bell and smiled. "
    "They rang it again and again, and it was fun.\nIn the end, Tom gave the bell to his friend."
)


def story(text: str, draw: int = 0) -> Text:
    return Text("story", draw, "Tell me a story about a little cat and a bell.", text, 50)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (GOOD, None),
        (GOOD.replace("Tom", "Töm"), "is no plain English"),
        (GOOD.replace("a bell", "1000 bells"), "is no plain English"),
        (GOOD + " In the end, Tom gave the bell to his friend." * 3, "repeats itself"),
        (GOOD.replace("sing", "be an AI"), "speaks of the writer"),
        (GOOD.replace("She liked", '"She liked'), "has a quote that does not end"),
        (GOOD.rstrip("."), "has no end"),
        ("Tom sang.\nThe end.", "is too short or too long"),
    ],
)
def test_a_text_is_left_out_for_what_is_wrong_with_it(text: str, fault: str | None) -> None:
    assert corpus.fault_of(story(text)) == fault


def test_what_follows_the_last_whole_sentence_is_cut_off() -> None:
    cut = corpus.ended(story(GOOD + ' Then he said, "Come! We'))
    assert cut == story(GOOD)
    assert corpus.fault_of(corpus.ended(story(GOOD + "\nIn the end, Tom")))


def test_a_text_is_kept_once_and_only_with_words_that_others_have() -> None:
    named = [story(GOOD.replace("Tom", name)) for name in ("Tim", "Sam", "Max", "Tim")]
    kept, faults = corpus.kept_of(named)
    assert (kept, faults) == ([], {"is there already": 1, "has a rare word": 3})
    common = [story(GOOD.replace("park", place)) for place in ("snow", "sun", "rain", "pond")]
    kept, faults = corpus.kept_of([*common, *(replace(text, asked="Tell me.") for text in common)])
    assert (kept, faults) == ([], {"has a rare word": 8})
    kept, _ = corpus.kept_of(
        [replace(story(GOOD), asked=f"Tell me {n} stories.") for n in range(3)]
    )
    assert len(kept) == 3


def test_hardly_two_stories_begin_alike_and_a_draw_is_the_same_again() -> None:
    def drawn(number: int) -> tuple[str, str]:
        rng = random.Random(f"story {number}")
        words = corpus.words_of(rng)
        opening = rng.choice(corpus.PROMPTS["stories"]["openings"])
        return corpus.said("A story about a {quality} {who}.", words), corpus.said(opening, words)

    prompts = [drawn(number) for number in range(2000)]
    assert len(set(prompts)) >= 0.995 * len(prompts)
    assert [drawn(number) for number in range(50)] == prompts[:50]
    assert not [text for _, text in prompts if "{" in text or " a apple" in text]


@pytest.mark.asyncio(loop_scope="session")
async def test_a_run_is_taken_up_where_it_ended(running: Running, tmp_path: Path) -> None:
    path = tmp_path / "written.jsonl"

    async def lines_of(stories: int, chats: int) -> list[str]:
        servers = [running.address]
        await corpus.write_all(servers, path, stories=stories, chats=chats, at_once=3)
        return path.read_text(encoding="utf-8").splitlines()

    first = await lines_of(2, 1)
    path.write_text("\n".join(first[:2]) + "\n" + first[2][:20], encoding="utf-8")
    again = await lines_of(3, 1)
    assert again[:2] == first[:2]
    found = corpus.read_written(path)
    assert sorted((text.kind, text.draw) for text in found) == [
        ("chat", 0),
        ("story", 0),
        ("story", 1),
        ("story", 2),
    ]
    assert first[2] in again, "a seed draws the same text again"
    assert all(text.tokens > 0 for text in found)


def test_every_third_story_answers_a_user_and_a_form_feed_parts_texts(tmp_path: Path) -> None:
    texts = [replace(story(GOOD, draw), asked=f"Tell me {draw} stories.") for draw in range(4)]
    chats = [Text("chat", draw, f"Who is {draw}?", "It is the cat.", 5) for draw in range(3)]
    corpus.write_kept([*texts, *chats], tmp_path)
    stories = (tmp_path / "stories.txt").read_text(encoding="utf-8")
    assert stories.rstrip("\n").split("\n\f\n") == [
        f"User: Tell me 0 stories.\nAssistant: {GOOD}",
        GOOD,
        GOOD,
        f"User: Tell me 3 stories.\nAssistant: {GOOD}",
    ]
    assert (tmp_path / "chats.txt").read_text(encoding="utf-8").count("\f") == 2


def test_a_server_that_is_not_there_is_said_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--server", "localhost:1", "--stories", "1", "--chats", "0"]
    assert corpus.main([str(tmp_path), *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("corpus: ")
    assert line.endswith("run it again to go on")
