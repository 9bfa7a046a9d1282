"""A tiny CLIP text encoder and a tokenizer for it that knows whole caption words."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .components import LETTERS, TEXT_WIDTH, WORDS

_START, _END = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"


def build_clip_tokenizer(max_tokens: int) -> CLIPTokenizer:
    """Build a byte-pair tokenizer that knows every caption word as one token and spells other words by letters."""
    merges = _learn_merges()
    pieces = [_START, _END, *LETTERS, *(letter + _WORD_END for letter in LETTERS), *map("".join, merges)]
    vocab = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=max_tokens)


def _learn_merges() -> list[tuple[str, str]]:
    # By hand: the learner of the tokenizers library breaks ties by a hash that differs between processes.
    words = [[*word[:-1], word[-1] + _WORD_END] for word in WORDS]
    merges = []
    while any(len(word) > 1 for word in words):
        pairs = Counter(pair for word in words for pair in pairwise(word))
        merges.append(max(pairs, key=lambda pair: (pairs[pair], pair)))
        words = [_merged(word, merges[-1]) for word in words]
    return merges


def _merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    result: list[str] = []
    for piece in word:
        if result and (result[-1], piece) == pair:
            result[-1] += piece
        else:
            result.append(piece)
    return result


def build_clip(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Build a two-layer CLIP text encoder of width 128 with random weights; it pools at the end token."""
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
