"""What a preview shows is what training reads first."""

import numpy as np
import pytest

from nt_dist.data.order import samples_at
from nt_dist.text.prepare import open_data
from nt_dist.training.preview import preview
from tests.unit.resnet.small import small
from tests.unit.text.data_case import config_over, sentences, write_jsonl


@pytest.mark.parametrize("layout", ["packed", "rows"])
def test_texts_are_shown_in_the_order_of_training(tmp_path, capsys, layout):
    texts = [sentences(1, seed) for seed in range(60)]
    path = write_jsonl(tmp_path / "a.jsonl", texts)
    config = config_over(tmp_path, path=str(path), layout=layout, sequence_length=400, validation=0.5)
    preview(config)
    lines = capsys.readouterr().out.split("== sample ")[1:]
    data = open_data(config)
    for number, (shown, index) in enumerate(zip(lines, samples_at(0, len(data.train), np.arange(3)), strict=True)):
        assert shown.startswith(f"{number} of the training: {index:,} of {len(data.train):,} ==\n")
        sample = data.train.drawn(int(index), number)
        assert f"{int(sample.weights.sum())} of 400 positions count" in shown
        if layout == "rows":
            text = shown.split("\n", 1)[1].split("\n-- ")[0]
            assert text.startswith("⟨bos⟩") and text.endswith("⟨eos⟩") and text[5:-5] in texts


def test_pictures_are_shown_by_their_numbers(capsys):
    preview(small(data={"source": "digits"}, model={"num_classes": 10}))
    said = capsys.readouterr().out
    assert said.count("uint8 [") == 3 and said.count("class (its weight): ") == 3
