"""Exports of models that write text."""

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from nt_dist.export.task import Task
from nt_dist.export.tokenizer import write_tokenizer


class TextGeneration(Task):
    """Tokens in, logits of the next token out, at once or through a key-value cache."""

    name = "text-generation"
    auto = AutoModelForCausalLM
    example = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("this folder"{remote})
tokenizer = AutoTokenizer.from_pretrained("this folder"{remote})
tokens = tokenizer("A text", return_tensors="pt")
print(tokenizer.decode(model.generate(**tokens, max_new_tokens=50)[0]))
"""

    def sizes(self, config):
        model = config.model
        vocabulary = f"vocabulary {model.vocab_size:,}"
        return f"hidden size {model.hidden_size}, {vocabulary}, sequences of {model.max_seq_len} tokens"

    def settle(self, model, ensemble):
        bos, eos = ensemble.tokenizer.bos, ensemble.tokenizer.eos
        model.generation_config = GenerationConfig(bos_token_id=bos, eos_token_id=eos, pad_token_id=eos)
        model.config.bos_token_id, model.config.eos_token_id, model.config.pad_token_id = bos, eos, eos

    def write(self, ensemble, folder):
        """Write the tokenizer; see :meth:`Task.write`."""
        write_tokenizer(ensemble.tokenizer, folder, ensemble.max_length)

    def inputs(self, ensemble, folder):
        """Random tokens; see :meth:`Task.inputs`."""
        shape = (2, min(ensemble.max_length, 64))
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(ensemble.config.model.vocab_size, shape, generator=generator)
        return tokens, {"input_ids": tokens}

    def more_pairs(self, model, inputs, answer):
        """The last token alone, through a cache; see :meth:`Task.more_pairs`."""
        tokens = inputs["input_ids"]
        cache = model(tokens[:, :-1], use_cache=True)["cache"]
        yield model(tokens[:, -1:], cache=cache).logits, answer.logits[:, -1:]
