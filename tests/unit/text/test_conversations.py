"""Conversations: read from rows, made tokens of which answers alone count, and kept with a mask."""

import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from nt_dist.config.rules import warnings
from nt_dist.data.mixture import numbered
from nt_dist.errors import DataError
from nt_dist.families import load_config
from nt_dist.text.chunks import read_chunk, write_chunk
from nt_dist.text.indexed import IndexedTokens, write_indexed, write_mask
from nt_dist.text.prepare import open_data, open_texts, prepare_data
from nt_dist.text.samples import Corrupted
from nt_dist.text.settings import Messages
from nt_dist.text.sources import BadDocuments, open_files
from nt_dist.text.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from nt_dist.training.preview import preview
from tests.unit.text.data_case import byte_level, config_over, sentences

TALKS = [
    [("system", "be brief"), ("user", sentences(1, seed)), ("assistant", sentences(1, -seed - 1)), ("user", "and?")]
    + [("assistant", f"so {sentences(1, seed + 99)}")] * (seed % 2)
    for seed in range(40)
]


def rows_of(talks):
    return [{"n": n, "talk": [{"role": r, "content": c} for r, c in talk]} for n, talk in enumerate(talks)]


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "talks.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows_of(TALKS)))
    return file


def read(path, share=0.0):
    source = open_files("data.path", str(path), None, Messages("talk"))
    source.bad = BadDocuments(share)
    return source, [[tuple(pair) for pair in json.loads(each.text)] for each in source.documents(0)]


def test_rows_hold_conversations_or_are_counted_as_bad(tmp_path, path):
    assert read(path)[1] == TALKS
    table = pyarrow.Table.from_pylist([*rows_of(TALKS[:3]), {"n": 4, "talk": None}])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    source, found = read(tmp_path / "a.parquet", 0.3)
    assert found == TALKS[:3] and source.bad.count == 1
    answer = {"role": "assistant", "content": "x"}
    for talk, message in (
        ("hello", "must be a list of {role, content}"),
        ([answer, {"role": "user"}], "its message 1 must have a role and a content that are texts"),
        ([{"role": "user", "content": "x"}], "has no answer: no message of the role 'assistant'"),
        ([], "has no answer"),
    ):
        path.write_text(json.dumps({"talk": talk}) + "\n")
        with pytest.raises(DataError) as caught:
            read(path)
        assert "line 1: the field data.messages_key = 'talk'" in str(caught.value) and message in str(caught.value)
    pyarrow.parquet.write_table(pyarrow.table({"talk": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="the column data.messages_key = 'talk' must be conversations, not string"):
        read(tmp_path / "a.parquet")


def test_what_is_asked_for_in_vain_is_said(path):
    data = {"messages_key": "talk", "text_key": "x"}
    said = {
        source: [each for each in warnings(load_config({"data": data | settings})) if "_key" in each]
        for source, settings in {"stdlib": {}, "jsonl": {"source": "jsonl", "path": str(path)}}.items()
    }
    assert [each.partition(" = ")[0] for each in said["stdlib"]] == ["data.text_key", "data.messages_key"]
    assert said["jsonl"] == ["data.text_key = 'x' is ignored: data.messages_key = 'talk'"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "a.jsonl"
    path.write_text("".join(json.dumps({"text": sentences(30, seed)}) + "\n" for seed in range(9)))
    return Tokenizer(train_tokenizer(open_files("data.path", str(path), None, "text"), 320), "")


def test_answers_and_their_ends_count_and_nothing_else(tokenizer, tmp_path):
    tokens, mask = tokenizer.conversation([("user", "the sea"), ("assistant", "rain"), ("user", "why")])
    parts = ["<|user|>\nthe sea\n<|assistant|>\n", "rain", "<|user|>\nwhy\n"]
    counted = [*tokenizer.encode("rain"), tokenizer.eos]
    assert [token for token, counts in zip(tokens, mask, strict=True) if counts] == counted
    assert tokenizer.decode(tokens) == "".join(parts) and tokens[0] == tokenizer.bos and tokens[-1] == tokenizer.eos
    assert not mask[-1]  # the last message is no answer
    place = mask.index(True)
    assert tokenizer.decode(tokens[:place]) == parts[0] and mask[place : place + len(counted)] == [True] * len(counted)
    assert tokenizer.conversation([("assistant", "rain")])[0].count(tokenizer.eos) == 1
    file = byte_level(tmp_path)
    kept = json.loads(file.read_text())
    piece = kept["added_tokens"][0]
    kept["added_tokens"].append(piece | {"id": 300, "content": "<|assistant|>"})
    file.write_text(json.dumps(kept))
    own = load_tokenizer(file, 301)
    tokens, mask = own.conversation([("user", "a"), ("assistant", "b")])
    assert tokens == [*own.encode("<|user|>\na\n"), 300, *own.encode("\n"), *own.encode("b"), own.eos]
    assert mask == [False] * (len(tokens) - 2) + [True] * 2


def test_a_mask_is_a_bit_for_each_token_wherever_it_is_cut(tmp_path):
    mask = np.random.default_rng(0).random(1003) < 0.4
    for number, cuts in enumerate(([], [1], [7, 8, 9, 500], [1003])):
        prefix = tmp_path / str(number)
        write_indexed(prefix, 300, [(np.zeros(1003), np.array([1003]))])
        files = write_mask(prefix.with_suffix(".mask"), np.split(mask, cuts))
        assert files[f"{number}.mask"].size == 126
        read = IndexedTokens(prefix)
        for start, count in ((0, 1003), (3, 900), (8, 8), (1000, 3), (1003, 0), (992, 0), (17, 1)):
            assert read.counts(start, count).tolist() == mask[start : start + count].tolist()
    prefix.with_suffix(".mask").write_bytes(b"x" * 125)
    with pytest.raises(DataError, match="3.mask: 125 bytes, must be a bit for each of 1003 tokens"):
        IndexedTokens(prefix)


def chat_config(tmp_path, path, **data):
    return config_over(tmp_path, path=str(path), messages_key="talk", validation=0.25, vocab_size=340, **data)


def expected(data, documents):
    """The tokens of conversations and which of them count, by the tokenizer, for what is prepared of them."""
    by_tokens = {tuple(tokens): mask for tokens, mask in map(data.tokenizer.conversation, TALKS)}
    return [(list(tokens), by_tokens[tuple(tokens)]) for tokens in documents]


@pytest.mark.parametrize("layout", ["packed", "rows"])
def test_samples_weigh_answers_alone(tmp_path, path, layout):
    config = chat_config(tmp_path, path, layout=layout, sequence_length=120)
    data = open_data(config)
    seen = 0
    for samples in (data.train, data.validation):
        indexed = samples.indexed
        talks = expected(data, [indexed.document(number) for number in range(indexed.num_documents)])
        seen += len(talks)
        if layout == "rows":
            for (tokens, mask), sample in zip(talks, samples, strict=True):
                wanted = [*mask[1:], *[False] * 120][:120]
                assert sample.weights.tolist() == wanted and sample.inputs[0] == tokens[0]
        else:
            mask = [each for _, own in talks for each in own]
            assert np.concatenate([each.weights for each in samples]).tolist() == mask[1 : 120 * len(samples) + 1]
        assert sum(sample.weights.sum() for sample in samples) > 9
    assert seen == 40
    with pytest.raises(DataError, match=r"data\.messages_key: corruptions are of whole texts"):
        Corrupted(data.validation, lambda tokens, draw: tokens)
    other = open_texts(config, str(path))
    assert other.validation.indexed.is_masked and other.validation.indexed.num_documents == 40


def test_a_mask_is_part_of_the_data_and_checked_as_tokens_are(tmp_path, path):
    config = chat_config(tmp_path, path)
    folder, before = prepare_data(config), open_data(config).digest
    record = json.loads((folder / "prepared.json").read_text())
    assert {"train.mask", "train.mask.blocks", "validation.mask"} <= record["files"].keys()
    data = bytearray((folder / "train.mask").read_bytes())
    data[3] ^= 4
    (folder / "train.mask").write_bytes(data)
    with pytest.raises(DataError, match="train.mask: is not what was prepared"):
        open_data(config)
    (folder / "train.mask").unlink()
    with pytest.raises(DataError, match="train.mask: is missing"):
        open_data(config)
    plain = tmp_path / "plain.jsonl"
    plain.write_text("".join(json.dumps({"talk": json.dumps(talk)}) + "\n" for talk in TALKS))
    same = open_data(config_over(tmp_path, 340, path=str(plain), text_key="talk", validation=0.25))
    assert same.digest != before and not same.train.indexed.is_masked


def test_a_chunk_of_conversations_keeps_its_mask(tmp_path, tokenizer):
    texts = [json.dumps(talk) for talk in TALKS[:3]]
    write_chunk(tmp_path / "a.npz", texts, tokenizer, True)
    whole = read_chunk(tmp_path / "a.npz")
    second = whole.some(np.array([False, True, False]))
    assert (second.tokens.tolist(), second.masks.tolist()) == tuple(map(list, tokenizer.conversation(TALKS[1])))
    np.savez(tmp_path / "b.npz", **{**whole._asdict(), "masks": whole.masks[:-1]})
    with pytest.raises(DataError, match="its lengths do not add up"):
        read_chunk(tmp_path / "b.npz")


def test_a_preview_marks_what_counts(tmp_path, path, capsys):
    config = chat_config(tmp_path, path, layout="rows", sequence_length=300)
    preview(config)
    said = capsys.readouterr().out.split("== sample ")[1:]
    data = open_data(config)
    for text, index in zip(said, numbered(data.train, 0, np.arange(3)).tolist(), strict=True):
        talk = next(each for each in TALKS if data.tokenizer.conversation(each)[0] == data.train.tokens(index).tolist())
        for role, content in talk:
            assert ("⟦" + content + "⟨eos⟩⟧" in text) == (role == "assistant") and f"<|{role}|>" in text
        assert f"{int(data.train[index].weights.sum())} of 300 positions count in the loss" in text
