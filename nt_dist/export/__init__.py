"""From checkpoints to the models of other programs, and back: Hugging Face's folders, the paper's checkpoints."""
