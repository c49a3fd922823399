"""T5 as families of transformers read it, and small T5 encoders with a tokenizer of their own, for tiny models.

Reference: Colin Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer",
JMLR 2020, arXiv 1910.10683.
"""

import string
from typing import Any

import torch
from transformers import T5EncoderModel, T5Tokenizer

from unreel.models.tiny_words import tiny_words


def tiny_tokenizer() -> T5Tokenizer:
    """T5's tokenizer with the words of the zoo's captions, each one token; other words are read letter by letter."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -8.0)]
    pieces += [(f"▁{word}", -5.0) for word in tiny_words()]
    pieces += [(letter, -9.0) for letter in string.ascii_letters + string.digits + string.punctuation]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


def tiny_encoder(tokenizer: Any, kind: type[T5EncoderModel] = T5EncoderModel, seed: int = 0) -> T5EncoderModel:
    """A T5 encoder with random weights, of width 32 with two layers, as T5-v1.1 and UMT5 are made (gated GELU).

    Args:
        tokenizer: whose tokens it reads.
        kind: T5EncoderModel, or UMT5EncoderModel.
        seed: of its weights.
    """
    torch.manual_seed(seed)
    config = kind.config_class(
        vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu", relative_attention_num_buckets=8, relative_attention_max_distance=32,
    )  # fmt: skip
    return kind(config)
