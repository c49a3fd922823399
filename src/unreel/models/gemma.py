"""Gemma-2 as the Sana families read it: an instruction before the prompt, of which the last tokens are kept.

    ids = tokens of (instruction + prompt), padded on the right;   read are token 0 and the last L - 1

Small Gemma-2 models with a tokenizer of their own are here too, for tiny models.

Reference: Gemma Team, "Gemma 2: Improving Open Language Models at a Practical Size", 2024, arXiv 2408.00118; the
instruction is section 3.1 of Enze Xie et al., "SANA", ICLR 2025, arXiv 2410.10629.
"""

import inspect
import json
import string
from collections.abc import Sequence
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer

from unreel.models.model import Reading, cleaned
from unreel.models.tiny_words import tiny_words

_INSTRUCTION = "complex_human_instruction"  # what the pipelines call it
TINY_INSTRUCTION = ("Say what is in the picture.", "Prompt: ")


def instruction_of(pipeline: type) -> list[str]:
    """The lines that a pipeline class puts before prompts by default."""
    return list(inspect.signature(pipeline.__call__).parameters[_INSTRUCTION].default)


def reading_of(instruction: Sequence[str], length: int) -> Reading:
    """How prompts are read after the lines of an instruction, none for none; L = `length` tokens are kept."""
    template = "\n".join(instruction) + "{}"
    keeps: Literal["all", "ends"] = "ends" if instruction else "all"
    return Reading(length, masked=True, template=template, cleaning="lower", keeps=keeps, pads="masked")


def tokenized(pipeline: Any, texts: Sequence[str], instruction: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
    """Ids of the tokens that are read of B texts, and which of them are no padding, both (B, L).

    Args:
        pipeline: with its tokenizer.
        texts: prompts.
        instruction: lines before each; none for none.
        length: L.
    """
    tokenizer, before, most = pipeline.tokenizer, "\n".join(instruction), length
    tokenizer.padding_side = "right"
    if before:
        most = len(tokenizer.encode(before)) + length - 2
    said = [before + cleaned(pipeline, text) for text in texts]
    tokens = tokenizer(said, padding="max_length", truncation=True, max_length=most, return_tensors="pt")
    kept = [0, *range(-length + 1, 0)]
    return tokens.input_ids[:, kept], tokens.attention_mask[:, kept]


def tiny_tokenizer() -> GemmaTokenizer:
    """Gemma's tokenizer with the words of the zoo's captions, most of them one token; others are read in pieces."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    made.normalizer = normalizers.Replace(" ", "▁")
    letters = [*string.ascii_letters, *string.digits, *string.punctuation, "▁", "\n"]
    trainer = trainers.BpeTrainer(
        vocab_size=2500, min_frequency=1, initial_alphabet=letters, show_progress=False,
        special_tokens=["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"],
    )  # fmt: skip
    made.train_from_iterator([f"▁{word}" for word in tiny_words()], trainer)
    told = json.loads(made.to_str())["model"]
    return GemmaTokenizer(vocab=told["vocab"], merges=[tuple(pair) for pair in told["merges"]], padding_side="right")


def tiny_encoder(tokenizer: Any, seed: int = 0) -> Gemma2Model:
    """A Gemma-2 model with random weights, of width 32 with two layers.

    Args:
        tokenizer: whose tokens it reads.
        seed: of its weights.
    """
    torch.manual_seed(seed)
    config = Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8, max_position_embeddings=2048,
    )  # fmt: skip
    return Gemma2Model(config)
