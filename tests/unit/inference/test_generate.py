"""Text is drawn as asked, the same with the same seed, in whole characters, past the context, coloured by doubt."""

import importlib.util
import io
import math
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nt_dist.errors import ConfigError, RunError
from nt_dist.inference import load_ensemble
from nt_dist.inference.generate import (
    Piece,
    Sampling,
    Shares,
    StopText,
    StreamDecoder,
    check_prompt,
    colour,
    generate,
    uncertainty,
    write,
)
from nt_dist.text.tokenizer import Tokenizer

from .trained_run import write_run

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def ensemble(run):
    return load_ensemble(run)


def text(pieces):
    return "".join(piece.text for piece in pieces)


def test_the_most_likely_tokens_are_those_of_whole_passes(ensemble):
    """40 tokens in a context of 16: each is the argmax given the window that the module's docstring promises."""
    tokenizer = ensemble.tokenizer
    tokens, window = [tokenizer.bos, *tokenizer.encode("The old")], 0
    start = 0
    for _ in range(40):
        if len(tokens) - start > 16:
            start = len(tokens) - 8
        logits = ensemble.logits(torch.tensor([tokens[start:]]))[:, 0, -1]
        token = int(logits.softmax(-1).mean(0).argmax())
        assert token != tokenizer.eos  # or the case says less
        tokens.append(token)
        window = max(window, len(tokens) - start)
    assert window == 17 and start > 0
    prompt_length = 1 + len(tokenizer.encode("The old"))
    expected = tokenizer.decode(tokens[1:])[len(tokenizer.decode(tokens[1:prompt_length])) :]
    assert text(generate(ensemble, "The old", 40, Sampling(temperature=0))) == expected


def test_a_seed_gives_one_text_and_another_seed_another(ensemble):
    texts = [text(generate(ensemble, "", 20, Sampling(seed=seed))) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_a_prompt_longer_than_the_context_is_taken(ensemble):
    assert text(generate(ensemble, "rain fell and nobody came to open its door " * 9, 3, Sampling()))


def test_a_text_that_outgrows_the_context_says_so_once(ensemble, caplog):
    assert text(generate(ensemble, "The old", 40, Sampling(temperature=0)))
    (record,) = caplog.records
    assert record.getMessage().startswith("the text is longer than the 16 tokens that the model was trained on")
    caplog.clear()
    assert text(generate(ensemble, "The old", 5, Sampling(temperature=0))) and not caplog.records


def test_the_first_stop_text_ends_what_is_written(ensemble):
    whole = text(generate(ensemble, "The old", 30, Sampling(temperature=0)))
    for stop in (whole[7:9], whole[5:12], whole[-1:], whole[0]):
        found = text(generate(ensemble, "The old", 30, Sampling(temperature=0), stop=["nowhere in it", stop, ""]))
        assert found == whole[: whole.index(stop)]
    assert text(generate(ensemble, "The old", 30, Sampling(temperature=0), stop=[whole[-2:] + "more"])) == whole


def test_stop_texts_are_found_however_they_come_in():
    for stops, given, expected in (
        (["ab"], ["a", "b"], ""),
        (["ab"], ["xa", "ac", "abx"], "xaac"),
        (["aab", "ba"], ["aaa", "b"], "a"),
        (["long", "on"], ["xl", "on", "g"], "xl"),
        (["yz"], ["xy"], "xy"),
    ):
        held = StopText(stops)
        texts = []
        for new in given:
            texts.append(held.add(new))
            if held.found:
                break
        assert "".join(texts) + held.rest() == expected


def test_the_end_of_a_document_ends_the_text(ensemble, monkeypatch):
    monkeypatch.setattr(Sampling, "choose", lambda self, log_probs, generator: ensemble.tokenizer.eos)
    assert list(generate(ensemble, "The", 9, Sampling())) == []


def test_draws_follow_temperature_and_top_p():
    probs = torch.tensor([0.1, 0.4, 0.3, 0.15, 0.05])

    def shares(**options):
        generator, sampling = torch.Generator().manual_seed(5), Sampling(**options)
        drawn = torch.tensor([sampling.choose(probs.log(), generator) for _ in range(4000)])
        return torch.bincount(drawn, minlength=5) / 4000

    torch.testing.assert_close(shares(), probs, atol=0.03, rtol=0)
    hot = probs.sqrt() / probs.sqrt().sum()
    torch.testing.assert_close(shares(temperature=2.0), hot, atol=0.03, rtol=0)
    torch.testing.assert_close(shares(top_p=0.6), torch.tensor([0, 0.4, 0.3, 0, 0]) / 0.7, atol=0.03, rtol=0)
    torch.testing.assert_close(shares(top_k=2), torch.tensor([0, 0.4, 0.3, 0, 0]) / 0.7, atol=0.03, rtol=0)
    torch.testing.assert_close(shares(top_k=2, top_p=0.5), torch.tensor([0.0, 1, 0, 0, 0]), atol=0, rtol=0)
    assert shares(top_p=1e-6)[1] == 1 and shares(temperature=0)[1] == 1


def test_the_lowest_temperature_draws_the_most_likely():
    log_probs = torch.tensor([0.1, 0.6, 0.3]).log()
    for temperature in (1e-40, 1e-310, 5e-324):
        assert Sampling(temperature).choose(log_probs, torch.Generator().manual_seed(0)) == 1


def test_what_is_out_of_range_is_refused_all_at_once():
    with pytest.raises(ConfigError) as caught:
        Sampling(temperature=-1, top_p=0, seed=-3, top_k=-1)
    assert str(caught.value).splitlines() == [
        "--temperature -1 must be a number of at least 0",
        "--top_p 0 must be in (0, 1]",
        "--seed -3 must be in [0, 2^63)",
        "--top_k -1 must be at least 0",
    ]
    with pytest.raises(ConfigError, match="--temperature nan"):
        Sampling(temperature=math.nan)


def test_a_prompt_that_is_no_text_is_refused():
    check_prompt("é")
    with pytest.raises(ConfigError, match="--prompt must be UTF-8 text"):
        check_prompt(os.fsdecode(b"a\xff"))


def test_uncertainty_is_total_or_what_the_trails_disagree_on():
    agreeing = torch.tensor([0.5, 0.25, 0.25]).log().expand(2, -1)
    assert uncertainty(agreeing, "entropy") == pytest.approx(1.5 * math.log(2))
    assert uncertainty(agreeing, "mutual_information") == pytest.approx(0, abs=1e-6)
    opposed = torch.tensor([[30.0, 0.0], [0.0, 30.0]])  # each sure, of different tokens
    assert uncertainty(opposed, "entropy") == pytest.approx(math.log(2))
    assert uncertainty(opposed, "mutual_information") == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("prompt", ["", "The old", "naïve 日本 é"])
def test_a_stream_is_the_whole_text_in_whole_characters(ensemble, prompt):
    tokenizer: Tokenizer = ensemble.tokenizer
    whole = " stood\n\tempty  日本語 🌲🌲 é e\u0301  ."
    decoder = StreamDecoder(tokenizer, tokenizer.encode(prompt))
    pieces = [decoder.add(token) for token in tokenizer.encode(whole)]
    assert "".join(pieces) == whole and "\ufffd" not in "".join(pieces) and decoder.rest() == ""
    for token in tokenizer.encode("🌲")[-4:-1]:
        assert decoder.add(token) == ""
    assert set(decoder.rest()) == {"\ufffd"}  # three of its four bytes


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_uncertainty_is_colour_in_a_terminal_and_numbers_elsewhere():
    pieces = [Piece(" sure", 0.0), Piece(" unsure\n", 1.0)]
    terminal, pipe, plain = Terminal(), io.StringIO(), io.StringIO()
    write(pieces, "So", terminal, "entropy")
    middle, red = colour(0.5), colour(1.0)
    assert terminal.getvalue().startswith(f"So{middle} sure\x1b[0m{red} unsure\n\x1b[0m\n\nup to (nats): {colour(0)}#")
    assert terminal.getvalue().count("0.000") == 5 == terminal.getvalue().count("1.000")
    shares = Shares()
    assert [shares.add(each / 1000) for each in (5, 1, 9, 5, 6)] == [0.5, 0.0, 1.0, 0.5, 0.75]
    assert len({colour(number / 10) for number in range(11)}) == 10  # tenths of what is written, however small
    write(pieces, "So", pipe, "entropy")
    assert pipe.getvalue() == "0.0000\t' sure'\n1.0000\t' unsure\\n'\n"
    write(pieces, "So", plain, "none")
    assert plain.getvalue() == "So sure unsure\n\n"


def test_the_command_writes_numbers_into_a_pipe(run, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("generate_tool", ROOT / "tools" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    options = ["--checkpoint", run, "--prompt", "The", "--max_tokens", 5, "--uncertainty", "mutual_information"]
    monkeypatch.setattr(sys, "argv", ["generate.py", *map(str, options)])
    assert module.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert 1 <= len(lines) <= 5 and all(0 <= float(line.split("\t")[0]) <= math.log(3) for line in lines)
    monkeypatch.setattr(sys, "stdin", io.StringIO("The old"))
    more = ["--prompt", "-", "--samples", 2, "--top_k", 3, "--stop", "\\n", "--uncertainty", "none", "--seed", 5]
    monkeypatch.setattr(sys, "argv", ["generate.py", *map(str, [*options, *more])])
    assert module.main() == 0
    *lines, last = capsys.readouterr().out.split("\n")
    assert [lines[0], lines[2]] == ["--- sample 1 of 2, --seed 5", "--- sample 2 of 2, --seed 6"]
    settings = [Sampling(0.8, 0.95, seed, 3) for seed in (5, 6)]
    expected = [text(generate(load_ensemble(run), "The old", 5, each, stop=["\n"])) for each in settings]
    assert [lines[1], lines[3]] == ["The old" + each for each in expected] and len(lines) == 4 and not last
    monkeypatch.setattr(sys, "argv", ["generate.py", *map(str, options), "--samples", "0", "--max_tokens", "-1"])
    with pytest.raises(ConfigError, match=r"--max_tokens -1 must be at least 1\n--samples 0 must be at least 1"):
        module.main()
    monkeypatch.setattr(sys, "argv", ["generate.py", *map(str, options), "--combine", "4"])
    with pytest.raises(ConfigError, match="--combine = '4' must be"):
        module.main()
    monkeypatch.setattr(sys, "argv", ["generate.py", *map(str, options), "--samples", str(10**20)])
    with pytest.raises(ConfigError, match="--seed 9+ must be in"):  # of the last sample
        module.main()
    monkeypatch.setattr(sys, "argv", ["generate.py", *map(str, options), "--prompt", "-"])
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(read=lambda: os.listdir(sys.executable)))
    with pytest.raises(RunError, match="the standard input: cannot be read: Not a directory"):
        module.main()


def test_a_terminal_is_given_no_escape_sequences_and_a_pipe_the_text_as_it_is():
    text = "a\x1b]0;owned\x07b\x9b2J\r\tc\n"
    for kind in ("none", "entropy"):
        terminal = Terminal()
        write([Piece(text, 0.1)], "\x1b[2J", terminal, kind)
        assert r"a\x1b]0;owned\x07b\x9b2J\r" + "\tc\n" in terminal.getvalue()
        assert terminal.getvalue().startswith(r"\x1b[2J") and "\x1b]" not in terminal.getvalue()
    pipe = io.StringIO()
    write([Piece(text, 0.1)], "", pipe, "none")
    assert pipe.getvalue() == text + "\n"
