import pytest
import torch
import torch.nn.functional as F

from ugt_composer.model.float32_linear import Float32Linear


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_result_is_float32_under_autocast_and_of_half_weights(dtype):
    layer, x = Float32Linear(6, 4), torch.randn(5, 6).to(dtype)
    expected = F.linear(x.float(), layer.weight, layer.bias)
    with torch.autocast("cpu", dtype):
        assert torch.equal(layer(x), expected)
    layer.to(dtype)
    assert torch.equal(layer(x), F.linear(x.float(), layer.weight.float(), layer.bias.float()))


def test_the_state_dict_is_that_of_a_linear_map():
    layer = torch.nn.Linear(6, 4)
    assert Float32Linear(6, 4).load_state_dict(layer.state_dict(), strict=True)
