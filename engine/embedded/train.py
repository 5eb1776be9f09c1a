"""Trains the embedded model: a sentencepiece tokenizer, then a small Llama, on plain text files.

It needs the extra ``train`` (transformers) and the text that ``corpus.py`` makes; ``README.md``
holds the commands and what they printed.  The shape is that of Llama (Touvron et al. 2023,
arXiv:2302.13971) with grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245) and a
tied output projection; training is AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) with
linear warm-up and a cosine decay.  Every twentieth document is held out, and the weights
written are those of the lowest held-out loss seen (early stopping).
"""

from __future__ import annotations

import argparse
import io
import json
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece as spm
import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

BREAK = "\f"
UNK, BOS, EOS = 0, 1, 2
HELD_OUT = slice(10, None, 20)  # of the documents, 5 %
TEMPERATURE = 0.5  # of a request that states none
TOKENS_PER_STEP = 4096
# Length of a sequence: how often a step has sequences of that length.
LENGTHS = {512: 0.8, 1024: 0.14, 4096: 0.06}
SAMPLED = (
    "Once upon a time,",
    "Once upon a time, there was a little girl named Lily.",
    "One day, a brave dog named Max found a key in the forest.",
    "There was once a shy mouse who wanted a friend.",
    "Tom and Anna went to the beach. They saw a big shell.",
    "One morning, the old owl woke up and heard a noise.",
    "A happy duck lived by the river.",
    "Mia was sad. She had lost her red hat.",
    "User: Tell me a story about a kind bear and a cake.\nAssistant:",
    "User: What does a cat eat?\nAssistant:",
)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] | capitalize }}: "
    "{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


@dataclass(frozen=True)
class Split:
    """The documents in tokens, each between BOS and EOS; those held out as one stream."""

    train: list[Tensor]
    valid: Tensor
    valid_chars: int


def read_documents(paths: list[Path]) -> list[str]:
    """Returns the documents of the files, which form feeds part from each other."""
    text = (path.read_text(encoding="utf-8") for path in paths)
    return [part.strip() for whole in text for part in whole.split(BREAK) if part.strip()]


def train_tokenizer(documents: list[str], vocab_size: int) -> spm.SentencePieceProcessor:
    """Trains a BPE tokenizer with byte fallback that leaves text exactly as it is."""
    model = io.BytesIO()  # a file's name would be kept in the model
    spm.SentencePieceTrainer.train(
        sentence_iterator=(line for text in documents for line in text.split("\n") if line),
        model_writer=model,
        vocab_size=vocab_size,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=0.9999,
        max_sentence_length=65536,
        unk_id=UNK,
        bos_id=BOS,
        eos_id=EOS,
        pad_id=-1,
        num_threads=2,
        minloglevel=2,
    )
    return spm.SentencePieceProcessor(model_proto=model.getvalue())


def split(documents: list[str], tokenizer: spm.SentencePieceProcessor) -> Split:
    """Returns the documents in tokens, those of `HELD_OUT` apart."""
    coded = [torch.tensor([BOS, *tokenizer.encode(text), EOS]) for text in documents]
    train = list(coded)
    del train[HELD_OUT]
    chars = sum(map(len, documents[HELD_OUT]))
    return Split(train, torch.cat(coded[HELD_OUT]), chars)


def make_config(vocab_size: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=EOS,
        architectures=["LlamaForCausalLM"],
    )


class Windows:
    """Draws windows that begin where a document does, until each has been drawn, then anew.

    What of its last document no longer fits into a window is left out until the next round.
    """

    def __init__(self, documents: list[Tensor], draw: random.Random) -> None:
        self._documents = documents
        self._draw = draw
        self._left: list[int] = []

    def batch(self) -> Tensor:
        """Returns the windows of a step, (count, length), all of one length that is drawn."""
        length = self._draw.choices(list(LENGTHS), list(LENGTHS.values()))[0]
        return torch.stack([self._window(length) for _ in range(TOKENS_PER_STEP // length)])

    def _window(self, length: int) -> Tensor:
        parts, missing = [], length
        while missing > 0:
            if not self._left:
                self._left = self._draw.sample(range(len(self._documents)), len(self._documents))
            parts.append(self._documents[self._left.pop()])
            missing -= len(parts[-1])
        return torch.cat(parts)[:length]


def loss_of(model: Callable[..., Any], windows: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(windows, use_cache=False).logits
    return nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), windows[:, 1:].ravel())


@torch.no_grad()
def validate(
    model: LlamaForCausalLM, stream: Tensor, length: int = 1024, limit: int = 256
) -> float:
    """Returns the mean cross-entropy in nats per token over windows that do not overlap."""
    model.eval()
    windows = stream[: len(stream) // length * length].view(-1, length).clone()[:limit]
    windows[:, 0] = BOS
    losses = [loss_of(model, part).item() * len(part) for part in windows.split(4)]
    model.train()
    return sum(losses) / len(windows)


def optimizer_for(model: nn.Module, rate: float) -> torch.optim.AdamW:
    """Returns AdamW for the model, in which the gains of norms do not decay."""
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.2},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95))


def write_json(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def save(model: LlamaForCausalLM, tokenizer: spm.SentencePieceProcessor, out: Path) -> None:
    """Writes weights in bf16 (training goes on in fp32), configuration and tokenizer."""
    copy = LlamaForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy.bfloat16().save_pretrained(out)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    config["rope_theta"] = config["rope_parameters"]["rope_theta"]  # where older readers look
    write_json(out / "config.json", config)
    GenerationConfig(
        bos_token_id=BOS, eos_token_id=EOS, do_sample=True, temperature=TEMPERATURE
    ).save_pretrained(out)
    (out / "tokenizer.model").write_bytes(tokenizer.serialized_model_proto())
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "add_bos_token": True,
        "add_eos_token": False,
        "legacy": True,  # every text it learnt from began with a space
        "clean_up_tokenization_spaces": False,
        "model_max_length": model.config.max_position_embeddings,
        "chat_template": CHAT_TEMPLATE,
    }
    write_json(out / "tokenizer_config.json", settings)


def rate_at(done: float, peak: float, warm: float = 0.03) -> float:
    """Returns the rate: it grows linearly at first, then falls as a cosine to a twentieth."""
    if done < warm:
        return peak * (done + 1e-3) / (warm + 1e-3)
    return peak * (0.05 + 0.475 * (1 + math.cos(math.pi * (done - warm) / (1 - warm))))


def fit(
    model: LlamaForCausalLM,
    data: Split,
    tokenizer: spm.SentencePieceProcessor,
    args: argparse.Namespace,
) -> float:
    """Trains for `args.steps`; `args.out` keeps the lowest held-out loss."""
    windows_of = Windows(data.train, random.Random(args.seed))
    compiled = torch.compile(model, dynamic=False)
    optimizer = optimizer_for(model, args.rate)
    best, started, running, seen = math.inf, time.monotonic(), 0.0, 0
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step / args.steps, args.rate)
        windows = windows_of.batch()
        loss = loss_of(compiled, windows)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seen += windows.numel()
        running = loss.item() if not step else 0.98 * running + 0.02 * loss.item()
        last = step + 1 == args.steps
        if (step + 1) % 50 == 0 or last:
            pace = seen / (time.monotonic() - started)
            tail = f"tokens {seen} tokens/s {pace:.0f}"
            print(f"step {step + 1} train {running:.4f} {tail}", flush=True)
        if (step + 1) % args.every == 0 or last:
            loss_now = validate(model, data.valid, limit=args.valid_windows)
            print(f"step {step + 1} validation {loss_now:.4f}", flush=True)
            if loss_now < best:
                best = loss_now
                save(model, tokenizer, args.out)
    return best


def bits_per_char(model: LlamaForCausalLM, data: Split, length: int) -> float:
    """Returns the held-out loss in windows of that length, in bits per character of the text."""
    whole = validate(model, data.valid, length, limit=10**6)
    return whole * len(data.valid) / data.valid_chars / math.log(2)


@torch.no_grad()
def report(out: Path, data: Split, tokenizer: spm.SentencePieceProcessor) -> None:
    """Prints the saved model's held-out losses and a sample for each of `SAMPLED`."""
    model = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32)
    whole = validate(model, data.valid, limit=10**6)
    print(f"parameters {sum(p.numel() for p in model.parameters())}")
    print(f"held-out loss {whole:.4f} nats/token, perplexity {math.exp(whole):.2f}")
    for length in (512, 1024, 4096):
        print(f"bits/char in windows of {length}: {bits_per_char(model, data, length):.3f}")
    generate: Callable[..., Tensor] = model.generate  # some versions annotate it unusably
    for prompt in SAMPLED:
        ids = torch.tensor([[BOS, *tokenizer.encode(prompt)]])
        made = generate(ids, max_new_tokens=200, do_sample=True, temperature=TEMPERATURE, top_k=0)
        print("sample:", tokenizer.decode(made[0].tolist()), flush=True)


def report_beside(folder: Path, documents: list[str]) -> None:
    """Prints the held-out loss of another model with its own tokenizer, on the same text."""
    tokenizer = spm.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    bits = bits_per_char(model, split(documents, tokenizer), 1024)
    print(f"bits/char of {folder} in windows of 1024: {bits:.3f}")


def write_held_out(path: Path, documents: list[str], size: int = 30_000) -> None:
    """Writes the first documents that are held out, about `size` characters of them."""
    texts: list[str] = []
    for text in documents[HELD_OUT]:
        if sum(map(len, texts)) < size:
            texts.append(text)
    path.write_text("\n\n".join(texts) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, nargs="+", required=True, metavar="FILE")
    parser.add_argument("--out", type=Path, required=True, help="the folder for the model")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--beside", type=Path, metavar="FOLDER", help="another model to measure")
    parser.add_argument("--held-out", type=Path, metavar="FILE", help="gets text to measure with")
    parser.add_argument("--rate", type=float, default=3e-3, help="the highest learning rate")
    parser.add_argument("--vocab", type=int, default=2048)
    parser.add_argument("--every", type=int, default=400, help="steps between validations")
    parser.add_argument("--valid-windows", type=int, default=32, help="used while training")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    documents = read_documents(args.corpus)
    tokenizer = train_tokenizer(documents, args.vocab)
    data = split(documents, tokenizer)
    tokens = sum(map(len, data.train))
    print(f"documents {len(documents)} tokens {tokens} train {len(data.valid)} held out")
    args.out.mkdir(parents=True, exist_ok=True)
    best = fit(LlamaForCausalLM(make_config(args.vocab)), data, tokenizer, args)
    print(f"best validation {best:.4f}")
    report(args.out, data, tokenizer)
    if args.beside:
        report_beside(args.beside, documents)
    if args.held_out:
        write_held_out(args.held_out, documents)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
