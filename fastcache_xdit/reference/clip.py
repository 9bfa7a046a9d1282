"""A tiny CLIP text encoder and a tokenizer for it that knows whole caption words."""

from __future__ import annotations

import json

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .components import LETTERS, TEXT_WIDTH, WORDS

_START, _END = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"


def build_clip_tokenizer(max_tokens: int) -> CLIPTokenizer:
    """Byte-pair tokenizer merged until every caption word is one token; letters are the fallback for other words."""
    learner = Tokenizer(models.BPE(end_of_word_suffix=_WORD_END))
    learner.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=10_000,  # far more than there are merges, so that none is left out
        min_frequency=0,
        special_tokens=[_START, _END],
        initial_alphabet=list(LETTERS),
        end_of_word_suffix=_WORD_END,
        show_progress=False,
    )
    learner.train_from_iterator([" ".join(WORDS)], trainer)
    learnt = json.loads(learner.to_str())["model"]
    vocab = _ordered(learnt["vocab"])
    for letter in LETTERS:
        vocab.setdefault(letter + _WORD_END, len(vocab))
    merges = [(left, right) for left, right in learnt["merges"]]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=max_tokens)


def _ordered(vocab: dict[str, int]) -> dict[str, int]:
    # The learner numbers single letters at the end of a word in the order of a hash that differs between processes.
    last = sorted(piece for piece in vocab if len(piece) == 1 + len(_WORD_END) and piece.endswith(_WORD_END))
    places = sorted(vocab[piece] for piece in last)
    return vocab | dict(zip(last, places, strict=True))


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
