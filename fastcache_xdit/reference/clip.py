"""A tiny CLIP text encoder and a tokenizer for it that knows whole caption words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .components import LETTERS, TEXT_WIDTH, WORDS

_SPECIAL = ("<|startoftext|>", "<|endoftext|>")
_WORD_END = "</w>"


def build_clip_tokenizer(max_tokens: int) -> CLIPTokenizer:
    """Byte-pair tokenizer merged until every caption word is one token; letters are the fallback for other words."""
    merges = _merges(WORDS)
    tokens = [
        *_SPECIAL,
        *LETTERS,
        *(letter + _WORD_END for letter in LETTERS),
        *(left + right for left, right in merges),
    ]
    vocab = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=max_tokens)


def _merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Byte-pair encoding, most frequent pair first and equals in alphabetical order, so that ids never change."""
    spelled = [[*word[:-1], word[-1] + _WORD_END] for word in words]
    merges = []
    while any(len(word) > 1 for word in spelled):
        pairs = Counter(pair for word in spelled for pair in pairwise(word))
        merges.append(max(sorted(pairs), key=pairs.__getitem__))
        spelled = [_joined(word, merges[-1]) for word in spelled]
    return merges


def _joined(word: Sequence[str], pair: tuple[str, str]) -> list[str]:
    parts: list[str] = []
    for part in word:
        if parts and (parts[-1], part) == pair:
            parts[-1] += part
        else:
            parts.append(part)
    return parts


def build_clip(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Two-layer CLIP text encoder of width 128 with random weights; its pooled output is that of the end token."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)
