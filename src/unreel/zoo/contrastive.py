"""Contrastive pretraining of text encoders, and of the first family's, CLIP, the tokenizer it reads with.

The image side is a small CNN over a few frames of a clip, so that motion words get a meaning too; it is thrown away.

Reference: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021,
arXiv 2103.00020, eq. of figure 3.
Departures: captions that are true of several clips of a batch are no negatives of any of them; half of each batch are
clips that differ in one word.
"""

import json
from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from unreel.zoo.drawings import GROUP, Drawings, consistent, groups
from unreel.zoo.pretraining import Stage

MAX_TOKENS = 64
_CLIP_SPLIT = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


def train_tokenizer(texts: list[str], vocabulary: int) -> CLIPTokenizer:
    """A byte-level BPE trained on `texts`, as a CLIPTokenizer of at most `vocabulary` entries; any text tokenises."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CLIP_SPLIT), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocabulary - 258, initial_alphabet=alphabet, end_of_word_suffix="</w>")
    bpe.train_from_iterator(texts, trainer)
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    entries = [*alphabet, *(f"{byte}</w>" for byte in alphabet)]
    entries += [a + b for a, b in merges]
    entries = [*dict.fromkeys(entries), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(entries)}, merges=merges, model_max_length=MAX_TOKENS
    )


def tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], padding: str = "longest", max_tokens: int = MAX_TOKENS
) -> dict[str, Tensor]:
    """input_ids and attention_mask, (B, L)."""
    return dict(tokenizer(texts, padding=padding, truncation=True, max_length=max_tokens, return_tensors="pt"))


def contrastive_loss(clips: Tensor, texts: Tensor, scale: Tensor, true_of: Tensor) -> Tensor:
    """Symmetric InfoNCE over the diagonal pairs, other true pairs masked out.

    Args:
        clips: (B, D), normalised.
        texts: (B, D), normalised; text i belongs to clip i.
        scale: the inverse temperature, a scalar.
        true_of: (B, B) bool, text i is true of clip j.
    """
    logits = (scale * texts @ clips.T).float()
    others = true_of.to(logits.device) & ~torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    logits = logits.masked_fill(others, float("-inf"))
    labels = torch.arange(len(logits), device=logits.device)
    return (functional.cross_entropy(logits, labels) + functional.cross_entropy(logits.T, labels)) / 2


def _conv(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1), nn.GroupNorm(8, outputs), nn.SiLU(),
                         nn.Conv2d(outputs, outputs, 3, 1, 1), nn.GroupNorm(8, outputs), nn.SiLU())  # fmt: skip


class Contrastive(Stage):
    """Trains `text_encoder` against clips: what text encoders of every kind share."""

    FRAMES = (0, 2, 5, 7)

    def __init__(
        self, drawings: Drawings, tokenizer: PreTrainedTokenizerBase, width: int, layers: int, heads: int, **stage: Any
    ) -> None:
        super().__init__(**stage)
        self.drawings, self.tokenizer = drawings, tokenizer
        self.text_encoder = self.build(width, layers, heads)
        self.image_tower = nn.Sequential(
            _conv(3 * len(self.FRAMES), 48), _conv(48, 96), _conv(96, 192), nn.Conv2d(192, 192, 3, 2, 1), nn.SiLU(),
            nn.Flatten(), nn.Linear(192 * 16, width),
        )  # fmt: skip
        self.text_projection = nn.Linear(width, width, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(np.log(14.0), dtype=torch.float32))

    @abstractmethod
    def build(self, width: int, layers: int, heads: int) -> PreTrainedModel:
        """A fresh text encoder of the kind."""

    @abstractmethod
    def pool(self, texts: list[str]) -> Tensor:
        """One vector for each text, (B, width)."""

    def loss(self, rng: np.random.Generator, generator: torch.Generator) -> dict[str, Tensor]:
        count = int(self.hparams["batch"])
        hard = groups(rng, count // (2 * GROUP), len(self.drawings))
        indices = np.concatenate([hard, rng.choice(len(self.drawings), count - len(hard), replace=False)])
        long = float(rng.random() < 0.25)  # all of a batch, since it is padded to its longest
        captions = self.drawings.captions(indices, rng, drop=0.12, long=long)
        strips = self.drawings.batch_of_clips(indices)[:, self.FRAMES].flatten(1, 2).to(self.device) * 2 - 1
        texts = functional.normalize(self.text_projection(self.pool([c.text for c in captions])), dim=-1)
        clips = functional.normalize(self.image_tower(strips), dim=-1)
        specs = [self.drawings.specs[i] for i in indices]
        true_of = consistent(captions, specs, specs)
        loss = contrastive_loss(clips, texts, self.log_scale.exp().clamp(max=100), true_of)
        with torch.no_grad():
            scores = (texts @ clips.T).masked_fill(
                true_of.to(texts.device) & ~torch.eye(count, dtype=torch.bool, device=texts.device), -1
            )
            accuracy = (scores.argmax(1).cpu() == torch.arange(count)).float().mean()
        return {"loss": loss, "accuracy": accuracy}


class ContrastiveText(Contrastive):
    """Trains `text_encoder`, a CLIPTextModel."""

    def build(self, width: int, layers: int, heads: int) -> CLIPTextModel:
        return CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(self.tokenizer), hidden_size=width, intermediate_size=4 * width,
                num_hidden_layers=layers, num_attention_heads=heads, max_position_embeddings=MAX_TOKENS,
                projection_dim=width, bos_token_id=self.tokenizer.bos_token_id,
                eos_token_id=self.tokenizer.eos_token_id, pad_token_id=self.tokenizer.pad_token_id,
            )
        )  # fmt: skip

    def pool(self, texts: list[str]) -> Tensor:
        tokens = tokenize(self.tokenizer, texts)
        return self.text_encoder(**{name: tensor.to(self.device) for name, tensor in tokens.items()}).pooler_output
