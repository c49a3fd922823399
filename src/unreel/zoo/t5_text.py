"""Contrastive pretraining of the T5 encoder that the zoo's PixArt and Latte share, and the tokenizer it reads with.

As `contrastive`, with one difference: T5 has no token that stands for the whole text, so the mean of its states over
the tokens that are no padding does. The denoisers read the states themselves.

Reference: Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", 2020,
arXiv 1910.10683, section 2.1, with the gated GELU of T5 v1.1 (Shazeer 2020, arXiv 2002.05202); Kudo, "Subword
Regularization", 2018, arXiv 1804.10959, section 3.2, for the unigram vocabulary.
Departures: the encoder learns from pairs of captions and clips, not from masked text.
"""

import string
from collections import Counter
from math import log

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from unreel.zoo.contrastive import Contrastive, tokenize

MAX_TOKENS = 120  # what PixArt's and Latte's pipelines pad a prompt to
SPECIAL = ["<pad>", "</s>", "<unk>"]  # ids 0, 1 and 2, as T5's
SPACE = "▁"  # how SentencePiece writes the space before a word


def train_t5_tokenizer(texts: list[str], vocabulary: int) -> T5Tokenizer:
    """A unigram model of at most `vocabulary` pieces over `texts`, as a T5Tokenizer.

    The pieces are those of a byte-pair encoding and their scores the logarithms of how often it uses them: the unigram
    trainer of `tokenizers` keeps no word that it finds in one form only, as most words of so few are. Every ASCII
    letter, digit and sign is a piece, so that any English text tokenises; other characters are <unk>. No piece spans a
    punctuation mark and a word. It is case-sensitive, as T5's: the pipelines lower prompts.
    """
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always"),
            pre_tokenizers.Punctuation(),
        ]
    )
    alphabet = [SPACE, *string.ascii_letters, *string.digits, *string.punctuation]
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=SPECIAL, initial_alphabet=alphabet)
    bpe.train_from_iterator(texts, trainer)
    uses = Counter(piece for encoding in bpe.encode_batch(texts) for piece in encoding.tokens)
    pieces = sorted(set(bpe.get_vocab()) - set(SPECIAL), key=lambda piece: (-uses[piece], piece))
    scores = [(piece, log((uses[piece] + 1) / uses.total())) for piece in pieces]
    return T5Tokenizer(vocab=[*((piece, 0.0) for piece in SPECIAL), *scores], extra_ids=0, model_max_length=MAX_TOKENS)


def mean_of_tokens(states: Tensor, attention_mask: Tensor) -> Tensor:
    """Mean of states (B, L, D) over the tokens that are no padding, (B, D)."""
    kept = attention_mask[..., None].to(states.dtype)
    return (states * kept).sum(1) / kept.sum(1)


class ContrastiveT5(Contrastive):
    """Trains `text_encoder`, a T5EncoderModel."""

    def build(self, width: int, layers: int, heads: int) -> T5EncoderModel:
        return T5EncoderModel(
            T5Config(
                vocab_size=len(self.tokenizer), d_model=width, d_kv=width // heads, d_ff=2 * width, num_layers=layers,
                num_heads=heads, feed_forward_proj="gated-gelu", dropout_rate=0.0, tie_word_embeddings=False,
                pad_token_id=self.tokenizer.pad_token_id, eos_token_id=self.tokenizer.eos_token_id,
            )
        )  # fmt: skip

    def pool(self, texts: list[str]) -> Tensor:
        tokens = tokenize(self.tokenizer, texts, max_tokens=MAX_TOKENS)
        tokens = {name: tensor.to(self.device) for name, tensor in tokens.items()}
        return mean_of_tokens(self.text_encoder(**tokens).last_hidden_state, tokens["attention_mask"])
