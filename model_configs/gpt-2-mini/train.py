"""Train gpt-2-mini, the embedded default model, on the Python documentation that every Python carries.

usage: train.py DIR [--steps N] [--seed N]

Writes the checkpoint and its tokenizer to DIR in the layout of a GPT-2 repository on the Hugging Face Hub. The text is
read from the running Python (``pydoc_data.topics``), and the training part of it is never stored. A topic is held out
when the sha256 of its name says so, so that the split is the same wherever the script runs; the tokenizer is trained on
the training part alone. What Python 3.11.7 has of the held-out part is in held-out/, for omz_evaluator.

The seed fixes the result on one machine with one set of library versions; other machines sum floating-point numbers in
another order and arrive at other weights of about the same perplexity.
"""

import argparse
import hashlib
import math
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from pydoc_data import topics

import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

END = "<|endoftext|>"
VOCABULARY, WIDTH, LAYERS, HEADS, POSITIONS = 2048, 128, 4, 4, 256
BATCH, PEAK_RATE, WARM_UP = 16, 3e-3, 100


def held_out(topic: str) -> bool:
    """Whether a topic is kept from training: about one in fifteen (5.6 % of the text), decided by its name."""
    return int(hashlib.sha256(topic.encode()).hexdigest(), 16) % 15 == 0


def split() -> tuple[str, str]:
    """The text to train on and the held-out text, topics in the order of their names.

    Topics quote each other at length: a paragraph that stands in a held-out topic is taken out of the training part,
    else the perplexity would be measured on text that was seen.
    """
    parts: dict[bool, list[str]] = {False: [], True: []}
    for name in sorted(topics.topics):
        parts[held_out(name)].append(topics.topics[name].strip())
    unseen = {words(paragraph) for text in parts[True] for paragraph in text.split("\n\n")}
    training = [
        "\n\n".join(paragraph for paragraph in text.split("\n\n") if words(paragraph) not in unseen)
        for text in parts[False]
    ]
    return f"\n{END}".join(training), f"\n{END}".join(parts[True])


def words(paragraph: str) -> str:
    """A paragraph without its line breaks and indentation."""
    return " ".join(paragraph.split())


def train_tokenizer(text: str) -> Tokenizer:
    """A byte-level BPE as GPT-2's, of VOCABULARY entries."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[END],
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def batches(tokens: torch.Tensor, steps: int, draw: torch.Generator) -> Iterator[torch.Tensor]:
    """Random windows of POSITIONS tokens, [BATCH, POSITIONS] i64."""
    for _ in range(steps):
        starts = torch.randint(len(tokens) - POSITIONS, (BATCH, 1), generator=draw)
        yield tokens[starts + torch.arange(POSITIONS)]


def perplexity(model: GPT2LMHeadModel, tokens: torch.Tensor) -> float:
    """Perplexity: exp of the mean loss over non-overlapping windows of POSITIONS tokens, the tail dropped."""
    windows = tokens[: len(tokens) // POSITIONS * POSITIONS].view(-1, POSITIONS)
    model.eval()
    with torch.no_grad():
        losses = [model(window[None], labels=window[None]).loss.item() for window in windows]
    model.train()
    return math.exp(sum(losses) / len(losses))


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to a twentieth of the peak, as a factor of the peak."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    done = (step - WARM_UP) / max(1, steps - WARM_UP)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    draw = torch.Generator().manual_seed(args.seed)

    versions = (
        f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, tokenizers {tokenizers.__version__}"
    )
    print(versions)
    training_text, held_out_text = split()
    tokenizer = train_tokenizer(training_text)
    training = torch.tensor(tokenizer.encode(training_text).ids)
    held = torch.tensor(tokenizer.encode(held_out_text).ids)
    names = ", ".join(name for name in sorted(topics.topics) if held_out(name))
    print(f"training:  {len(training_text):,} characters, {len(training):,} tokens")
    print(f"held out:  {len(held_out_text):,} characters, {len(held):,} tokens ({names})")

    end = tokenizer.token_to_id(END)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=POSITIONS, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS,
        bos_token_id=end, eos_token_id=end, resid_pdrop=0.15, embd_pdrop=0.15, attn_pdrop=0.0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=PEAK_RATE,
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, args.steps))
    print(
        f"parameters: {model.num_parameters():,}; {args.steps} steps of {BATCH} x {POSITIONS} tokens, seed {args.seed}"
    )

    began = time.monotonic()
    for step, ids in enumerate(batches(training, args.steps, draw), start=1):
        loss = model(ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 250 == 0 or step == args.steps:
            seconds = time.monotonic() - began
            print(
                f"step {step:5}: training loss {loss.item():.3f}, "
                f"held-out perplexity {perplexity(model, held):.2f}, {seconds:.0f} s",
                flush=True,
            )

    args.dir.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(args.dir)
    tokenizer.model.save(str(args.dir))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, unk_token=END, model_max_length=POSITIONS
    ).save_pretrained(args.dir)


if __name__ == "__main__":
    main()
