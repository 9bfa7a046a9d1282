"""Tokenizer and untrained text encoder that the models share."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import T5Config, T5EncoderModel, T5Tokenizer

from .shapes import BACKGROUNDS, COLOURS, KINDS

# The words of captions, and the letters that spell any other word.
WORDS = (
    "a",
    "an",
    "small",
    *COLOURS,
    *KINDS,
    "left",
    "right",
    "of",
    "above",
    "below",
    "on",
    *BACKGROUNDS,
    "background",
)
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,'-"
TEXT_WIDTH = 128


def build_tokenizer(max_tokens: int, words: Sequence[str] = WORDS) -> T5Tokenizer:
    """Build a unigram tokenizer of whole words; words outside the caption language are spelt by letters."""
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocab += [("▁" + word, -1.0) for word in words]
    # A whole word must always win over its spelling, hence the much lower score of letters.
    vocab += [(piece, -20.0) for piece in "▁" + LETTERS]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=max_tokens)


def build_text_encoder(vocab_size: int) -> T5EncoderModel:
    """Build a two-layer T5 encoder of width 128 with random weights."""
    config = T5Config(
        vocab_size=vocab_size,
        d_model=TEXT_WIDTH,
        d_kv=32,
        d_ff=256,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="relu",
        pad_token_id=0,
        eos_token_id=1,
        is_encoder_decoder=False,
        use_cache=False,
    )
    return T5EncoderModel(config)
