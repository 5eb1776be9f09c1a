"""Text to ids and back: increments, stop strings, special tokens, chat templates."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.checkpoint.json_file import CheckpointError
from engine.checkpoint.tokenizer import Tokenizer

LINES = [
    "In the beginning was the word, and the word was with the reader.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "The quick brown fox jumps over the lazy dog; 0123456789 times!",
]
CHATML = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'tool' %}"
    "{{ raise_exception('no tools here') }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ADDED = {"<|im_start|>": 400, "<|im_end|>": 401}


def _write_settings(folder: Path, **settings: object) -> None:
    text = json.dumps({"bos_token": "<s>", "eos_token": "</s>", **settings})
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def _write_sentencepiece(folder: Path) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 3),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    added = {
        str(i): {"content": text, "special": True, "lstrip": False} for text, i in ADDED.items()
    }
    _write_settings(folder, added_tokens_decoder=added, chat_template=CHATML, legacy=False)


def _write_byte_level(folder: Path) -> None:
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=350,
        special_tokens=["<s>", "</s>", *ADDED],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(LINES, trainer)
    made.add_tokens(["<tool call>"])
    made.save(str(folder / "tokenizer.json"))
    _write_settings(folder, chat_template=[{"name": "default", "template": CHATML}])


def _write_byte_fallback(folder: Path) -> None:
    """As the tokenizer.json of Llama 2 and Mistral: sentencepiece's pieces, BOS by template."""
    letters = sorted({c for line in LINES for c in line.replace(" ", "\u2581")})
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *letters]
    pieces += ["th", "\u2581th", "\u2581the"]
    merges = [("t", "h"), ("\u2581", "th"), ("\u2581th", "e")]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    model = tokenizers.models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True)
    made = tokenizers.Tokenizer(model)
    made.normalizer = tokenizers.normalizers.Sequence(
        [
            tokenizers.normalizers.Prepend("\u2581"),
            tokenizers.normalizers.Replace(" ", "\u2581"),
        ]
    )
    made.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("\u2581", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
            tokenizers.decoders.Strip(" ", 1, 0),
        ]
    )
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    made.save(str(folder / "tokenizer.json"))
    _write_settings(folder)


WRITERS = {
    "sentencepiece": _write_sentencepiece,
    "byte-level": _write_byte_level,
    "byte-fallback": _write_byte_fallback,
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for kind, write in WRITERS.items():
        made[kind] = tmp_path_factory.mktemp(kind)
        write(made[kind])
    return made


@pytest.fixture(scope="session")
def loaded(folders: dict[str, Path]) -> dict[str, Tokenizer]:
    return {kind: Tokenizer.load(folder) for kind, folder in folders.items()}


def increments(tokenizer: Tokenizer, ids: list[int], prompt: list[int] | None = None) -> list[str]:
    detokenizer = tokenizer.detokenizer(prompt or [])
    return [*map(detokenizer.feed, ids), detokenizer.finish()]


@pytest.mark.parametrize("kind", WRITERS)
@settings(deadline=None, max_examples=60)
@given(text=st.text())
def test_text_survives_encoding_and_decoding(
    kind: str, loaded: dict[str, Tokenizer], text: str
) -> None:
    tokenizer = loaded[kind]
    if not any(special in text for special in ("<s>", "</s>", "<unk>", "\u2581", "\x00")):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("kind", WRITERS)
@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_increments_add_up_to_what_the_library_decodes(
    kind: str, loaded: dict[str, Tokenizer], folders: dict[str, Path], data: st.DataObject
) -> None:
    """For any ids whose bytes are UTF-8; and no increment ever shows half a character."""
    tokenizer = loaded[kind]
    ids = data.draw(st.lists(st.integers(3, 349), max_size=12))
    if kind == "sentencepiece":
        library = sentencepiece.SentencePieceProcessor(
            model_file=str(folders[kind] / "tokenizer.model")
        )
        expected = library.decode(ids)
    else:
        library = tokenizers.Tokenizer.from_file(str(folders[kind] / "tokenizer.json"))
        ids = [i for i in ids if i < library.get_vocab_size()]
        expected = library.decode(ids)
    pieces = increments(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    if "\ufffd" not in expected:
        assert "".join(pieces) == expected
        assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_character_of_several_tokens_comes_whole(kind: str, loaded: dict[str, Tokenizer]) -> None:
    tokenizer = loaded[kind]
    ids = tokenizer.encode("a漢🙂b", add_bos=False)
    pieces = increments(tokenizer, ids)
    assert "".join(pieces) == "a漢🙂b"
    assert [p for p in pieces if not p.isascii()] == ["漢", "🙂"]
    cut = increments(tokenizer, ids[:-2])  # the last bytes of the second character never come
    assert "".join(cut[:-1]) == "a漢"
    assert set(cut[-1]) == {"\ufffd"}


@pytest.mark.parametrize("kind", WRITERS)
@settings(deadline=None)
@given(head=st.sampled_from(["", "the word", "Zwölf"]), tail=st.sampled_from([" fox", "fox", " "]))
def test_output_continues_its_prompt_with_the_spaces_that_belong_there(
    kind: str, loaded: dict[str, Tokenizer], head: str, tail: str
) -> None:
    tokenizer = loaded[kind]
    whole, prompt = tokenizer.encode(head + tail), tokenizer.encode(head)
    if whole[: len(prompt)] == prompt:
        assert head + "".join(increments(tokenizer, whole[len(prompt) :], prompt)) == head + tail


def test_ids_beyond_the_vocabulary_spell_nothing(loaded: dict[str, Tokenizer]) -> None:
    tokenizer = loaded["byte-level"]
    assert tokenizer.decode([tokenizer.vocab_size, 10**6]) == ""


@pytest.mark.parametrize(("kind", "adds"), [("sentencepiece", True), ("byte-fallback", True)])
def test_bos_comes_first_where_the_model_wants_it(
    kind: str, adds: bool, loaded: dict[str, Tokenizer], folders: dict[str, Path], tmp_path: Path
) -> None:
    tokenizer = loaded[kind]
    assert tokenizer.bos_id is not None
    assert tokenizer.encode("the fox")[0] == tokenizer.bos_id
    assert tokenizer.bos_id not in tokenizer.encode("the fox", add_bos=False)
    for path in folders[kind].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    _write_settings(tmp_path, add_bos_token=False)
    assert Tokenizer.load(tmp_path).encode("the fox") == tokenizer.encode("the fox")[1:]


def test_no_bos_where_the_tokenizer_adds_none(loaded: dict[str, Tokenizer]) -> None:
    tokenizer = loaded["byte-level"]
    assert tokenizer.encode("the") == tokenizer.encode("the", add_bos=False)


@pytest.mark.parametrize("kind", ["sentencepiece", "byte-level"])
def test_special_tokens_in_text_become_their_ids_and_spell_nothing(
    kind: str, loaded: dict[str, Tokenizer]
) -> None:
    tokenizer = loaded[kind]
    start, end = (tokenizer.encode(text, add_bos=False) for text in ADDED)
    assert len(start) == len(end) == 1
    ids = tokenizer.encode("<|im_start|>the fox<|im_end|></s>", add_bos=False)
    assert [ids[0], *ids[-2:]] == [*start, *end, tokenizer.eos_id]
    assert tokenizer.decode(tokenizer.encode("the") + ids) == "thethe fox"


def test_a_space_goes_before_what_follows_a_special_token_unless_legacy_is_off(
    folders: dict[str, Path], loaded: dict[str, Tokenizer], tmp_path: Path
) -> None:
    """sentencepiece's own way, which older checkpoints were trained with."""
    path = folders["sentencepiece"] / "tokenizer.model"
    (tmp_path / path.name).write_bytes(path.read_bytes())
    legacy = Tokenizer.load(tmp_path)
    assert legacy.encode("<s>the", add_bos=False) == legacy.encode("the")
    tokenizer = loaded["sentencepiece"]
    assert tokenizer.encode("<s>the", add_bos=False) != tokenizer.encode("the")


def test_added_tokens_that_are_not_special_are_spelled(loaded: dict[str, Tokenizer]) -> None:
    tokenizer = loaded["byte-level"]
    ids = tokenizer.encode("<tool call>")
    assert len(ids) == 1
    assert tokenizer.decode(ids) == "<tool call>"


@pytest.mark.parametrize("kind", ["sentencepiece", "byte-level"])
def test_a_conversation_is_rendered_by_the_checkpoints_template(
    kind: str, loaded: dict[str, Tokenizer]
) -> None:
    tokenizer = loaded[kind]
    assert tokenizer.has_chat_template
    messages = [{"role": "user", "content": "the word?"}]
    text = "<s><|im_start|>user\nthe word?<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer.encode_chat(messages)
    assert ids == tokenizer.encode(text, add_bos=False)
    assert ids.count(tokenizer.bos_id) == 1
    assert tokenizer.encode_chat(messages, False) == ids[: len(ids) - len(_turn(tokenizer))]
    with pytest.raises(ValueError, match="no tools here"):
        tokenizer.encode_chat([{"role": "tool", "content": ""}])


def _turn(tokenizer: Tokenizer) -> list[int]:
    return tokenizer.encode("<|im_end|><|im_start|>assistant\n", add_bos=False)[1:]


def test_without_a_template_a_conversation_is_refused(loaded: dict[str, Tokenizer]) -> None:
    assert not loaded["byte-fallback"].has_chat_template
    with pytest.raises(ValueError, match="no chat template"):
        loaded["byte-fallback"].encode_chat([{"role": "user", "content": "x"}])


def test_a_template_file_goes_before_the_settings_and_stays_in_its_sandbox(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    for path in folders["byte-level"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    template = tmp_path / "chat_template.jinja"
    template.write_text(
        "{% for m in messages %}\n{% generation %}{{ m.content | tojson }}{% endgeneration %}"
        "\n{% break %}{% endfor %}"
    )
    tokenizer = Tokenizer.load(tmp_path)
    messages = [{"role": "user", "content": "<é>"}, {"role": "user", "content": "b"}]
    assert tokenizer.decode(tokenizer.encode_chat(messages)) == '"<é>"'
    template.write_text("{{ messages.__class__.__mro__ }}")
    with pytest.raises(ValueError, match="refuses"):
        Tokenizer.load(tmp_path).encode_chat(messages)
    template.write_text("{% for %}")
    with pytest.raises(CheckpointError, match="does not parse"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.model", "no model", "not a sentencepiece model"),
        ("tokenizer.json", "{}", "unreadable"),
        ("tokenizer.json", "[", "cannot be read as JSON"),
        ("other", "", "no tokenizer.model or tokenizer.json"),
    ],
)
def test_a_wrong_tokenizer_file_is_named(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        Tokenizer.load(tmp_path)


def test_an_unknown_decoder_is_refused_rather_than_misspelt(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    raw = json.loads((folders["byte-level"] / "tokenizer.json").read_text())
    raw["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="WordPiece"):
        Tokenizer.load(tmp_path)


def test_tokenizer_json_without_its_package_says_what_to_install(
    folders: dict[str, Path],
) -> None:
    code = (
        "import sys; sys.modules['tokenizers'] = None\n"
        "from engine.checkpoint.json_file import CheckpointError\n"
        "from engine.checkpoint.tokenizer import Tokenizer\n"
        "try: Tokenizer.load(sys.argv[1])\n"
        "except CheckpointError as error: print(error)\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, folders["byte-level"]], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "pip install 'niyama[hf]'" in done.stdout
