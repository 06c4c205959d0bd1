"""A profile of some steps is one file that Perfetto and TensorBoard read."""

import json

import torch

from nt_dist.training.profiling import StepProfile


def test_a_profile_has_the_steps_that_were_asked_for(tmp_path):
    profile = StepProfile("2:3", tmp_path, cuda=False)
    for number in range(1, 5):
        with profile.step(number):
            torch.ones(4).sum()
    (file,) = (tmp_path / "profile").iterdir()
    assert file.name == "steps-2-3.pt.trace.json"
    names = {event.get("name") for event in json.loads(file.read_text())["traceEvents"]}
    assert {"step 2", "step 3", "aten::sum"} <= names and not {"step 1", "step 4"} & names


def test_no_profile_is_made_unasked(tmp_path):
    with StepProfile("", tmp_path, cuda=False).step(1):
        pass
    assert not list(tmp_path.iterdir())
