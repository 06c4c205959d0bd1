"""What transformers' callers may ask of an exported ensemble is done, or refused: nothing is accepted and ignored."""

import copy
import functools
import importlib.metadata
import importlib.util

import accelerate
import pytest
import torch
from torch.utils.data import Dataset
from transformers import DynamicCache, StaticCache, Trainer, TrainingArguments

from nt_dist.export.hf import modeling_neurotrails, modeling_neurotrails_resnet
from nt_dist.export.hf.modeling_neurotrails import NeuroTrailsConfig, NeuroTrailsForCausalLM
from nt_dist.export.hf.modeling_neurotrails_resnet import (
    NeuroTrailsForImageClassification,
    NeuroTrailsResNetConfig,
)

TOKENS = torch.randint(0, 61, (2, 12), generator=torch.Generator().manual_seed(1))
PADDING = (torch.arange(12) >= torch.tensor([[0], [3]])).long()


def ensemble(**settings):
    torch.manual_seed(0)
    sizes = {"vocab_size": 61, "hidden_size": 16, "intermediate_size": 24, "num_key_value_heads": 2}
    ends = {"eos_token_id": None, "pad_token_id": 0}
    sizes |= {"trunk_layers": 1, "trail_layers": 1, "initializer_range": 0.3, **ends}
    return NeuroTrailsForCausalLM(NeuroTrailsConfig(**sizes | settings)).eval()


class Rows(Dataset):
    """Sixteen of a length of their own, the rest padding."""

    def __len__(self):
        return 16

    def __getitem__(self, number):
        ids = torch.randint(0, 61, (10,), generator=torch.Generator().manual_seed(number))
        labels = ids.where(torch.arange(10) < 3 + number % 8, -100)
        return {"input_ids": ids, "labels": labels}


class Pictures(Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, number):
        picture = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(number))
        return {"pixel_values": picture, "labels": torch.tensor(number % 3)}


def image_model():
    torch.manual_seed(0)
    sizes = {"block": "preactivation", "depths": [1], "width": 4, "stem": "small", "stem_width": 4, "trail_layers": 1}
    model = NeuroTrailsForImageClassification(NeuroTrailsResNetConfig(**sizes, image_size=8, num_labels=3))
    for module in model.modules():  # with batch statistics, parts of a batch are not the batch
        if isinstance(module, torch.nn.BatchNorm2d):
            module.train = lambda mode, module=module: module
            module.training = False
    return model


@pytest.mark.parametrize("make, rows", [(ensemble, Rows()), (image_model, Pictures())], ids=["text", "pictures"])
def test_loss_and_gradient_do_not_depend_on_how_rows_are_cut(tmp_path, make, rows):
    found = []
    for parts in (1, 4, 16):
        settings = {"per_device_train_batch_size": 16 // parts, "gradient_accumulation_steps": parts, "max_steps": 1}
        arguments = TrainingArguments(
            str(tmp_path),
            **settings,
            use_cpu=True,
            report_to=[],
            logging_steps=1,
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = Trainer(make(), arguments, train_dataset=rows)
        trainer.train()
        found.append([trainer.state.log_history[0][name] for name in ("loss", "grad_norm")])
    torch.testing.assert_close(torch.tensor(found[1:]), torch.tensor(found[:1] * 2), rtol=1e-3, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("mask", [None, PADDING], ids=["whole", "padded"])
def test_a_static_cache_gives_the_same_logits(mask):
    model = ensemble()
    expected = model(TOKENS, mask).logits
    cache, found = StaticCache(config=model.config, max_cache_len=20), []
    for start, end in ((0, 7), (7, 11), (11, 12)):
        part = model(TOKENS[:, start:end], None if mask is None else mask[:, :end], cache=cache)
        found.append(part.logits)
    real = slice(None) if mask is None else mask.bool()
    torch.testing.assert_close(torch.cat(found, 1)[real], expected[real], rtol=1e-4, atol=1e-4)


def test_every_way_to_generate_writes_the_same():
    model = ensemble()
    settings = {"attention_mask": PADDING, "max_new_tokens": 9, "do_sample": False}
    plain = model.generate(TOKENS, **settings)
    assert torch.equal(model.generate(TOKENS, **settings, cache_implementation="static"), plain)
    one = {"max_new_tokens": 9, "do_sample": False}
    plain = model.generate(TOKENS[:1], **one)
    assert torch.equal(model.generate(TOKENS[:1], **one, prompt_lookup_num_tokens=3), plain)
    assert torch.equal(model.generate(TOKENS[:1], **one, assistant_model=ensemble(num_trails=1)), plain)
    embedded = model.get_input_embeddings()(TOKENS[:1])
    assert torch.equal(model.generate(inputs_embeds=embedded, **one), plain[:, 12:])


@torch.no_grad()
def test_a_static_cache_is_told_where_the_new_tokens_are(monkeypatch):
    """As transformers needs it up to 5.0, where all else is put at the beginning."""
    told, update = [], StaticCache.update

    def look(self, key, value, number, *arguments):
        told.append((number, arguments[0]["cache_position"].tolist()))
        return update(self, key, value, number, *arguments)

    monkeypatch.setattr(StaticCache, "update", look)
    model = ensemble(num_trails=1)
    cache = StaticCache(config=model.config, max_cache_len=20)
    model(TOKENS[:, :2], cache=cache), model(TOKENS[:, 2:5], cache=cache)
    assert told == [(0, [0, 1]), (1, [0, 1]), (0, [2, 3, 4]), (1, [2, 3, 4])]


@torch.no_grad()
@pytest.mark.parametrize("use_cache", [True, False])
def test_a_prompt_of_embeddings_is_put_before_the_text_once(use_cache):
    """As PEFT's prompt tuning does it, which asks whether there is a cache by the name of past_key_values."""
    model = ensemble()
    table, prompt = model.get_input_embeddings(), torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(3))
    prepare, expected = model.prepare_inputs_for_generation, table(TOKENS[:1])

    @functools.wraps(prepare)
    def prepare_with_prompt(*arguments, **settings):
        inputs = prepare(*arguments, **settings)
        cache = inputs.get("past_key_values")
        inputs.pop("attention_mask", None)
        inputs["position_ids"] = None
        if cache is None or not cache.get_seq_length():
            inputs["inputs_embeds"] = torch.cat([prompt, table(inputs["input_ids"])], 1)
            inputs["input_ids"] = None
        return inputs

    written = []
    with torch.no_grad():
        for _ in range(6):
            logits = model(inputs_embeds=torch.cat([prompt, expected], 1)).logits
            written.append(int(logits[0, -1].argmax()))
            expected = torch.cat([expected, table(torch.tensor([written[-1:]]))], 1)
    model.prepare_inputs_for_generation = prepare_with_prompt
    mask = torch.ones_like(TOKENS[:1])
    made = model.generate(TOKENS[:1], attention_mask=mask, max_new_tokens=6, do_sample=False, use_cache=use_cache)
    assert made[0, 12:].tolist() == written


def test_torch_exports_an_ensemble_for_any_length():
    model, length = ensemble(num_trails=2, trunk_layers=0), torch.export.Dim("length", min=2, max=64)

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask=None):
            return self.model(input_ids, attention_mask, use_cache=False).logits

    shapes = {"input_ids": {1: length}, "attention_mask": {1: length}}
    for mask in (None, torch.ones_like(TOKENS)):  # that nothing is padded is not taken for what always holds
        given = {"input_ids": TOKENS} | ({} if mask is None else {"attention_mask": mask})
        exported = torch.export.export(
            Logits(), (), given, dynamic_shapes={each: shapes[each] for each in given}
        ).module()
        for count in (12, 7):
            given = {"input_ids": TOKENS[:, -count:]} | ({} if mask is None else {"attention_mask": PADDING[:, :count]})
            real = slice(None) if mask is None else given["attention_mask"].bool()
            found, expected = exported(**given), Logits()(**given)
            torch.testing.assert_close(found[real], expected[real], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("module", [modeling_neurotrails, modeling_neurotrails_resnet])
def test_a_version_that_is_too_old_is_named_at_loading(monkeypatch, module):
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "4.56.2" if name == "transformers" else version(name)
    )
    spec = importlib.util.spec_from_file_location(f"{module.__package__}.tried", module.__file__)
    with pytest.raises(ImportError, match=r"transformers>=4.57 is required .* found transformers==4.56.2"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_attention_is_computed_as_it_was_asked_for(monkeypatch):
    model, asked = ensemble(), []
    eager = NeuroTrailsForCausalLM._from_config(copy.deepcopy(model.config), attn_implementation="eager").eval()
    eager.load_state_dict(model.state_dict())
    attend = modeling_neurotrails.attend
    monkeypatch.setattr(modeling_neurotrails, "attend", lambda *a: asked.append(1) or attend(*a))
    causal = torch.ones(12, 12).tril().bool().expand(2, 1, 12, 12)
    added = torch.zeros(2, 1, 12, 12).masked_fill(~causal, -1e9)
    with torch.no_grad():
        for mask in (None, PADDING, causal, added):
            real = slice(None) if mask is not PADDING else PADDING.bool()
            found, expected = (each(TOKENS, mask).logits[real] for each in (eager, model))
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert len(asked) == 4 * model.config.num_hidden_layers  # by the eager one alone
    again = copy.deepcopy(model)
    again.set_attn_implementation("eager")  # also after it was loaded
    again(TOKENS)
    assert len(asked) == 5 * model.config.num_hidden_layers
    settings = {"attention_mask": PADDING, "max_new_tokens": 5, "do_sample": False}
    assert torch.equal(eager.generate(TOKENS, **settings), model.generate(TOKENS, **settings))
    with pytest.raises(ValueError, match="does not support Flash Attention"):
        NeuroTrailsForCausalLM._from_config(model.config, attn_implementation="flash_attention_2")


def test_trails_may_be_on_different_devices():
    """The first trail's is one without numbers here; accelerate moves what each module is given."""
    model = ensemble(num_trails=2)
    parts = {"embed_tokens": "cpu", "trunk": "cpu", "trails.0": "meta", "trails.1": "cpu"}
    accelerate.dispatch_model(model, parts, main_device="cpu", force_hooks=True)
    accelerate.hooks.remove_hook_from_module(model)  # which would bring the answer back: nothing comes from there
    for kept, count in ((0, 12), (torch.tensor([2, 5]), 2)):
        output = model(TOKENS, PADDING, logits_to_keep=kept)
        assert output.logits.is_meta and output.logits.shape == (2, count, 61)


@torch.no_grad()
def test_places_embeddings_masks_and_tuples():
    model = ensemble()
    whole = model(TOKENS)
    logits = whole.logits
    assert torch.allclose(model(TOKENS, logits_to_keep=torch.tensor([2, 5])).logits, logits[:, [2, 5]], atol=1e-5)
    each = torch.tensor([[1, 3], [0, 11]])
    expected = torch.stack([logits[0, [1, 3]], logits[1, [0, 11]]])
    assert torch.allclose(model(TOKENS, logits_to_keep=each).logits, expected, atol=1e-5)
    assert torch.allclose(model(TOKENS, logits_to_keep=PADDING.bool()).logits, logits[PADDING.bool()], atol=1e-5)
    assert torch.allclose(model(inputs_embeds=model.get_input_embeddings()(TOKENS)).logits, logits, atol=1e-5)
    causal = torch.ones(12, 12).tril().bool().expand(2, 1, 12, 12)
    for mask in (causal, torch.zeros(2, 1, 12, 12).masked_fill(~causal, -1e9)):
        assert torch.allclose(model(TOKENS, mask).logits, logits, atol=1e-4)
    assert whole.past_key_values.get_seq_length() == 12
    model.config.return_dict = False
    assert torch.equal(model(TOKENS)[0], logits) and isinstance(model(TOKENS, return_dict=False), tuple)


@torch.no_grad()
@pytest.mark.parametrize("settings", [{}, {"fork_at_embedding": True, "trunk_layers": 0}], ids=["shared", "own"])
def test_tokens_are_added(settings, tmp_path):
    model = ensemble(**settings)
    before = model(TOKENS, combine="logit").logits
    model.resize_token_embeddings(64)
    after = model(TOKENS, combine="logit").logits
    assert after.shape[-1] == 64 and torch.allclose(after[..., :61], before, atol=1e-5)
    assert model(torch.tensor([[63]])).logits.isfinite().all()
    model.save_pretrained(tmp_path)
    back = NeuroTrailsForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(back(TOKENS, combine="logit").logits, after)


@pytest.mark.parametrize(
    "asked, rule",
    [
        ({"output_hidden_states": True}, "output_hidden_states must be false"),
        ({"output_attentions": True}, "output_attentions must be false"),
        ({"inputs_embeds": torch.zeros(2, 12, 16)}, "exactly one of input_ids and inputs_embeds"),
        ({"labels": TOKENS, "logits_to_keep": 2}, "logits_to_keep must be 0 where labels are given"),
        ({"cache": ((TOKENS, TOKENS),)}, "cache must be a Cache of transformers, not a tuple"),
        ({"attention_mask": torch.ones(2, 1, 12, 12).long()}, "attention_mask of four dimensions must be boolean"),
        ({"shift_labels": TOKENS}, "unexpected keyword argument 'shift_labels'"),
        ({"cache_position": TOKENS[0]}, "unexpected keyword argument 'cache_position'"),  # which transformers warns of
    ],
    ids=lambda each: " ".join(each) if isinstance(each, dict) else "",
)
def test_what_an_ensemble_cannot_do_is_refused(asked, rule):
    with pytest.raises((ValueError, TypeError), match=rule):
        ensemble()(TOKENS, **asked)


def test_settings_and_embeddings_that_cannot_be_are_refused():
    model = ensemble(output_hidden_states=True)
    with pytest.raises(ValueError, match="output_hidden_states must be false"):
        model(TOKENS)
    with pytest.raises(ValueError, match="output_hidden_states must be false"):
        image_model()(torch.zeros(1, 3, 8, 8), output_hidden_states=True)
    for changed in (
        {"tie_word_embeddings": True},
        {"sliding_window": 8},
        {"hidden_act": "gelu"},
        {"rope_scaling": {"factor": 2.0}},
    ):
        (name,) = changed
        with pytest.raises(ValueError, match=f"{name} = .* must be .*: an ensemble has nothing else"):
            ensemble(**changed)
    with pytest.raises(ValueError, match="does not support (gradient|activation) checkpointing"):
        model.gradient_checkpointing_enable()
    own = ensemble(fork_at_embedding=True, trunk_layers=0)
    with pytest.raises(NotImplementedError, match="each trail has an embedding of its own"):
        own.get_input_embeddings()
    with pytest.raises(ValueError, match="inputs_embeds cannot be used"):
        own(inputs_embeds=torch.zeros(2, 12, 16))
    assert DynamicCache is type(own(TOKENS).cache)
