"""Qwen2.5-VL as families of transformers read it: a conversation in which the prompt is what the user says.

    tokens of (what the system says, the prompt, where the answer begins);   read are those from the prompt on

Small text models of Qwen2.5-VL with a tokenizer of their own are here too, for tiny models.

Reference: Shuai Bai et al., "Qwen2.5-VL Technical Report", 2025, arXiv 2502.13923.
"""

import json
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import pre_tokenizers, trainers
from transformers import Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel, Qwen2Tokenizer

from unreel.models.tiny_words import tiny_words

_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_CONVERSATION = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_tokenizer(system: Sequence[str]) -> Qwen2Tokenizer:
    """Qwen's tokenizer with the words of the zoo's captions and of what the system says, each one token, as in Qwen's
    own; others are read in pieces.

    Args:
        system: what the system says to the models that are going to use it.
    """
    made = Qwen2Tokenizer().backend_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=4000, min_frequency=1, show_progress=False, special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    said = ["system\nuser\nassistant\n", *system, *(f" {word}" for word in tiny_words())]
    made.train_from_iterator(said, trainer)
    told = json.loads(made.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=told["vocab"], merges=[tuple(pair) for pair in told["merges"]], padding_side="right",
        additional_special_tokens=list(_SPECIAL[1:]), chat_template=_CONVERSATION,
    )  # fmt: skip


def tiny_encoder(tokenizer: Any, seed: int = 0) -> Qwen2_5_VLTextModel:
    """A text model of Qwen2.5-VL with random weights, of width 32 with four layers.

    Args:
        tokenizer: whose tokens it reads.
        seed: of its weights.
    """
    torch.manual_seed(seed)
    config = Qwen2_5_VLTextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, initializer_range=0.2, eos_token_id=0, pad_token_id=0,
        rope_parameters={"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4},
    )  # fmt: skip
    return Qwen2_5_VLTextModel(config)
