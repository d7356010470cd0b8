"""Builds the small CLIP tokenizer of the synthetic test world: one token per known word, else one per byte."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from autolora.paperdoll.look import GROUPS, MARKS, NOVEL_OUTFITS, mark_tags, tag_vocabulary

MAX_TOKENS = 64


def byte_symbols() -> list[str]:
    """Return the 256 printable symbols that byte-level BPE (GPT-2) uses for bytes, in byte order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    symbols, extra = {b: chr(b) for b in printable}, 0
    for byte in range(256):
        if byte not in symbols:
            symbols[byte] = chr(256 + extra)
            extra += 1
    return [symbols[b] for b in range(256)]


def build_tokenizer(max_tokens: int = MAX_TOKENS) -> CLIPTokenizer:
    """Build a tokenizer with every byte symbol in its vocabulary, so that every trigger has different tokens."""
    tags = [*tag_vocabulary(), *NOVEL_OUTFITS, *mark_tags(), *GROUPS["hair_color"], *MARKS["two_tone_color"]]
    words = sorted({w for tag in tags for w in re.findall("[a-z]+", tag)})
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(vocab_size=20000, min_frequency=1, end_of_word_suffix="</w>", show_progress=False)
    bpe.train_from_iterator([" ".join(words)], trainer)
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    symbols = byte_symbols()
    entries = symbols + [s + "</w>" for s in symbols] + ["".join(pair) for pair in merges]
    entries += ["<|startoftext|>", "<|endoftext|>"]  # older text encoders find the end token by its highest id
    vocab = {token: index for index, token in enumerate(dict.fromkeys(entries))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=max_tokens)


def save_tokenizer(folder: Path) -> CLIPTokenizer:
    """Write the tokenizer's files into a folder and return the tokenizer."""
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(str(folder))
    return tokenizer
