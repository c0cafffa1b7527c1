"""Which of diffusers' attention back ends can be told of padding, and what the network says of the chosen ones."""

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

from kandinsky5.model.attention import WITHOUT_MASK, SoftmaxAttention

from .tiny import config_of


def refuses_a_mask(backend: AttentionBackendName) -> bool:
    """Asked of the back end itself. Most are not installed here, but a mask is the first thing they look at."""
    states, mask = torch.zeros(1, 2, 1, 16), torch.ones(1, 1, 1, 2, dtype=torch.bool)
    try:
        _AttentionBackendRegistry._backends[backend](query=states, key=states, value=states, attn_mask=mask)
    except ValueError as error:
        return "attn_mask" in str(error) and "not supported" in str(error)
    except Exception:
        return False
    return False


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_those_without_a_mask_are_known():
    backends = _AttentionBackendRegistry.list_backends()
    assert {backend.value for backend in backends if refuses_a_mask(backend)} == WITHOUT_MASK


def test_the_one_that_is_chosen_decides(build, back_end_restored):
    network = build(config_of("t2i"))
    assert network.takes_text_mask
    network.set_attention_backend("_native_flash")
    assert not network.takes_text_mask
    network.set_attention_backend("native")
    assert network.takes_text_mask
    _AttentionBackendRegistry.set_active_backend(AttentionBackendName.SAGE)
    assert network.takes_text_mask, "its own choice comes first"
    network.reset_attention_backend()
    assert not network.takes_text_mask, "without one, diffusers' active back end runs"


def test_only_who_reads_the_text_needs_one(build, back_end_restored):
    """Self-attention over the picture has no padding."""
    network = build(config_of("t2i"))
    for block in network.visual_transformer_blocks:
        block.self_attention.processor._attention_backend = AttentionBackendName.FLASH
    assert network.takes_text_mask
    network.visual_transformer_blocks[
        1
    ].cross_attention.processor._attention_backend = AttentionBackendName.FLASH
    assert not network.takes_text_mask


def test_a_processor_of_the_users_own_is_believed_to_take_one(build):
    network = build(config_of("t2i"))
    own = SoftmaxAttention()
    for block in network.text_transformer_blocks:
        block.self_attention.set_processor(lambda *states: own(*states))
    assert network.takes_text_mask
