"""Few-shot unlearning of a text encoder, so that text-to-video models forget a concept."""
