"""A local language model that writes long forms of prompts, as services for video generation do before they render."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from unreel.files import write_text
from unreel.hashes import content_key, folder_hash, library_versions
from unreel.rewriting import LEAST_WORDS, MOST_WORDS

_ASKED = (
    "Rewrite this prompt for a text-to-video model as one paragraph of {least} to {most} words. Add details of light,"
    " colours and camera, and no other thing, person, place, style or movement. Keep these words exactly: {kept}."
    " Answer with the rewritten prompt alone.\n\nPrompt: {text}"
)
_MOST_TOKENS = 120  # of an answer


def rewritten(texts: Sequence[str], kept: Sequence[Sequence[str]], folder: Path, cache: Path, device: str) -> list[str]:
    """Long forms of texts, by the likeliest word each time; what was written once is read from `cache`.

    Args:
        texts: short prompts.
        kept: of each, phrases that the model is asked to keep; nobody makes sure that it does.
        folder: of the model and its tokenizer, in transformers' format.
        cache: where answers are kept.
        device: cpu, or anything else for a GPU where there is one.
    """
    asked = [_ASKED.format(least=LEAST_WORDS, most=MOST_WORDS, kept="; ".join(own), text=text)
             for text, own in zip(texts, kept, strict=True)]  # fmt: skip
    key = content_key(asked=asked, model=folder_hash(folder), libraries=library_versions(), most=_MOST_TOKENS)
    path = cache / "rewritten" / f"{key}.json"
    if not path.is_file():
        answers = [cleaned(answer) for answer in _answers(asked, folder, device)]
        write_text(path, json.dumps(answers, ensure_ascii=False))
    return [str(text) for text in json.loads(path.read_text(encoding="utf-8"))]


@torch.inference_mode()
def _answers(asked: Sequence[str], folder: Path, device: str) -> list[str]:
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
    model.to("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    answers = []
    for text in asked:
        if tokenizer.chat_template:
            said = [{"role": "user", "content": text}]
            text = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        inputs = tokenizer(text, return_tensors="pt", add_special_tokens=not tokenizer.chat_template).to(model.device)
        ids = model.generate(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=_MOST_TOKENS,
            do_sample=False, pad_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        answers.append(tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return answers


def cleaned(answer: str) -> str:
    """The prompt in a model's answer: its first paragraph without thoughts, labels, quotes and signs of markup.

    >>> cleaned('<think>hm</think>\\nRewritten prompt: "A cat,\\n under  the *stars*."\\n\\nI hope this helps!')
    'A cat, under the stars.'
    """
    text = re.sub(r"<think>.*?</think>", "", answer, flags=re.DOTALL)
    text = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd*#`_]", "", text).strip()
    text = " ".join(re.split(r"\n\s*\n", text)[0].split())
    text = re.sub(r"^(?:sure[^:]*:|(?:the )?(?:rewritten |video )?prompt:)\s*", "", text, flags=re.IGNORECASE)
    return text.strip("\"'“”‘’ ")
