"""The first training samples as a model will see them, for people: what ``train.py --preview`` prints."""

import itertools
from typing import Any

import numpy as np

from nt_dist.config import Config
from nt_dist.data.mixture import Mixture, numbered
from nt_dist.data.samples import Sample
from nt_dist.errors import printable
from nt_dist.messages import start_logging

_COUNT = 3


def preview(config: Config) -> None:
    """Prepare the data where they are not there, and print the first samples of the training."""
    start_logging(0)
    data = config.family.open_data(config, True, lambda work: work())
    numbers = np.arange(_COUNT)
    for number, index in enumerate(numbered(data.train, config.train.seed, numbers).tolist()):
        of = f" ({data.train.place(index)[0]})" if isinstance(data.train, Mixture) else ""
        print(f"== sample {number} of the training: {index:,} of {len(data.train):,}{of} ==")
        print(shown(data.train.drawn(index, number), data.tokenizer))


def shown(sample: Sample, tokenizer: Any) -> str:
    """A sample as text: of a text its tokens, BOS and EOS as ⟨bos⟩ and ⟨eos⟩, those that count in the loss in ⟦ and ⟧
    where only some do; of a picture its numbers."""
    if tokenizer is None:
        low, high = sample.inputs.min(), sample.inputs.max()
        classes = ", ".join(f"{c} ({w:g})" for c, w in zip(sample.targets, sample.weights, strict=True))
        return f"{sample.inputs.dtype} {list(sample.inputs.shape)}, {low} to {high}; class (its weight): {classes}"
    counted = sample.weights > 0
    is_real = counted | (sample.targets != 0)  # padding is 0, and only masks leave out more
    length = int(is_real.nonzero()[0].max(initial=-1)) + 1
    tokens = [*sample.inputs[:length].tolist(), *sample.targets[length - 1 : length].tolist()]
    is_masked = not counted[:length].all()
    counts_too = [False, *counted[:length].tolist()] if is_masked else [False] * len(tokens)
    marks, text = {tokenizer.bos: "⟨bos⟩", tokenizer.eos: "⟨eos⟩"}, ""
    for counts, some in itertools.groupby(zip(tokens, counts_too, strict=True), lambda each: each[1]):
        part = ""
        for is_control, group in itertools.groupby((token for token, _ in some), marks.__contains__):
            run = list(group)
            part += "".join(map(marks.get, run)) if is_control else tokenizer.decode(run)
        text += f"⟦{part}⟧" if counts else part
    return f"{printable(text)}\n-- {len(tokens)} tokens; {counted.sum()} of {len(counted)} positions count in the loss"
