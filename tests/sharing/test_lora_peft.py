"""Low-rank adapters against peft, with an adapter for each task (extra `peft`)."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call

from raymtl.encoders import LeNetSpec
from raymtl.sharing import LoRASpec
from raymtl.tasks import classification, regression
from tests.sharing.laws import moved

peft: Any = pytest.importorskip("peft", exc_type=ImportError)

TASKS = (classification("a", 4), regression("b", 0.0, 1.0))
RANK, ALPHA, SHAPE = 2, 3.0, (1, 20, 17)


@pytest.mark.usefixtures("float64")
def test_it_computes_what_peft_does() -> None:
    """On convolutions and linear layers; peft's adapters of the tasks get one A."""
    trunk = LeNetSpec(maps=(2, 3), hidden=(5,)).build(SHAPE)
    ours = LoRASpec(rank=RANK, alpha=ALPHA).build(TASKS, [deepcopy(trunk)])
    layers = [n for n, m in trunk.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=layers)
    theirs = peft.PeftModel(trunk, config, adapter_name="a")
    theirs.add_adapter("b", config)
    params = moved(ours, 0.3)
    state = theirs.base_model.model.state_dict()
    for name, value in params.items():
        layer, _, factor = name.removeprefix("encoders.0.").partition(".lora.")
        if factor == "A":
            for task in ("a", "b"):
                state[f"{layer}.lora_A.{task}.weight"].copy_(value)
        elif factor:
            target = state[f"{layer}.lora_B.{factor.removeprefix('B.')}.weight"]
            target.copy_(value.view_as(target))
        elif name.startswith("encoders."):
            layer, _, kind = layer.rpartition(".")
            state[f"{layer}.base_layer.{kind}"].copy_(value)
    inputs = torch.randn(3, *SHAPE)
    features = functional_call(ours, params, (inputs,), {"output": "features"})
    for task in ("a", "b"):
        theirs.set_adapter(task)
        torch.testing.assert_close(features[task], theirs(inputs), rtol=1e-12, atol=1e-12)
