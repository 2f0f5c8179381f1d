"""The layers of a language model are found in every architecture."""

from typing import Any

import pytest
from torch import nn

from fvl_lightning.core.errors import ConfigError
from fvl_lightning.language_models.causal import CausalLanguageModel
from tests.modeling.architectures import CONTAMINATED, EXACT

OTHERS: dict[str, dict[str, Any]] = {
    "mixtral": {
        "model_type": "mixtral", "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "vocab_size": 40,
        "num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 2,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", [*EXACT, *CONTAMINATED, *OTHERS])
def test_the_layers_are_found(name: str) -> None:
    config = {**EXACT, **CONTAMINATED, **OTHERS}[name]
    component = CausalLanguageModel(CausalLanguageModel.Config(model=config))
    found = component.blocks()
    assert len(found) == 2
    weights = sum(parameter.numel() for block in found for parameter in block.parameters())
    tables = {module.weight for module in component.modules() if isinstance(module, nn.Embedding)}
    tables |= {component.model.get_output_embeddings().weight}
    rest = sum(parameter.numel() for parameter in component.parameters()) - sum(table.numel() for table in tables)
    assert weights > 0.9 * rest, "what is in no block but tables and last norm is gathered as one"


def test_layers_that_are_not_found_are_named() -> None:
    component = CausalLanguageModel(CausalLanguageModel.Config(model=EXACT["llama"]))
    component.model.config.num_hidden_layers = 3
    with pytest.raises(ConfigError, match="no list of 3 layers was found in LlamaForCausalLM"):
        component.blocks()
