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

import sentencepiece as spm
import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

BREAK = "\f"
UNK, BOS, EOS = 0, 1, 2
TOKENS_PER_STEP = 2048
# Length of a sequence: how often a step has sequences of that length.
LENGTHS = {256: 0.6, 1024: 0.36, 4096: 0.04}
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: "
    "{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


@dataclass(frozen=True)
class Split:
    """Token streams: each document between BOS and EOS, in the corpus's order."""

    train: Tensor
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
    """Holds out every twentieth document (5 %)."""
    streams: tuple[list[int], list[int]] = ([], [])
    chars = 0
    for index, text in enumerate(documents):
        held_out = index % 20 == 10
        chars += len(text) * held_out
        streams[held_out].extend([BOS, *tokenizer.encode(text), EOS])
    return Split(torch.tensor(streams[0]), torch.tensor(streams[1]), chars)


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


def batch(stream: Tensor, draw: random.Random) -> Tensor:
    """Draws windows of one length at random places; each begins with BOS, as prompts do."""
    length = draw.choices(list(LENGTHS), list(LENGTHS.values()))[0]
    count = max(1, TOKENS_PER_STEP // length)
    starts = [draw.randrange(len(stream) - length) for _ in range(count)]
    windows = torch.stack([stream[start : start + length] for start in starts])
    windows[:, 0] = BOS
    return windows


def loss_of(model: LlamaForCausalLM, windows: Tensor) -> Tensor:
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
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.1},
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
        bos_token_id=BOS, eos_token_id=EOS, do_sample=True, temperature=0.7
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
    """Trains to `args.stop` or `args.steps`; `args.out` keeps the lowest held-out loss."""
    draw = random.Random(args.seed)
    optimizer = optimizer_for(model, args.rate)
    best, started, running, seen = math.inf, time.monotonic(), 0.0, 0
    end = min(args.steps, args.stop or args.steps)
    for step in range(end):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step / args.steps, args.rate)
        windows = batch(data.train, draw)
        loss = loss_of(model, windows)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seen += windows.numel()
        running = loss.item() if not step else 0.98 * running + 0.02 * loss.item()
        last = step + 1 == end
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


@torch.no_grad()
def report(out: Path, data: Split, tokenizer: spm.SentencePieceProcessor) -> None:
    """Prints the saved model's held-out losses and samples."""
    model = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32)
    parameters = sum(p.numel() for p in model.parameters())
    whole = validate(model, data.valid, limit=10**6)
    bits = whole * len(data.valid) / data.valid_chars / math.log(2)
    print(f"parameters {parameters}")
    print(f"held-out loss {whole:.4f} perplexity {math.exp(whole):.2f} bits/char {bits:.3f}")
    for length in (256, 4096):
        print(f"held-out loss at length {length}: {validate(model, data.valid, length, 10**6):.4f}")
    generate: Callable[..., Tensor] = model.generate  # some versions annotate it unusably
    for prompt in (
        "And it came to pass",
        "She was very glad to",
        "A hacker is",
        "User: Who are you?\nAssistant:",
    ):
        ids = torch.tensor([[BOS, *tokenizer.encode(prompt)]])
        made = generate(ids, max_new_tokens=100, do_sample=True, temperature=0.7, top_k=0)
        print("sample:", tokenizer.decode(made[0].tolist()))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, nargs="+", required=True, metavar="FILE")
    parser.add_argument("--out", type=Path, required=True, help="the folder for the model")
    parser.add_argument("--steps", type=int, default=3200, help="the schedule's length")
    parser.add_argument("--stop", type=int, help="end early, after this step of the schedule")
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
    print(f"documents {len(documents)} tokens {len(data.train)} train {len(data.valid)} held out")
    args.out.mkdir(parents=True, exist_ok=True)
    best = fit(LlamaForCausalLM(make_config(args.vocab)), data, tokenizer, args)
    print(f"best validation {best:.4f}")
    report(args.out, data, tokenizer)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
