"""Networks in the form of ONNX files: the same functions in other layers, with the weights that they share."""

import pytest
import torch
from torch import nn

from gleansr.inference.cpu.shuffled import enlargement
from gleansr.inference.exportable import ShuffledConv, TwoRows, exportable
from gleansr.models.glean import GLEAN, GLEANConfig, NoBankConfig, PixelShuffleUp, lighten
from gleansr.models.rrdb import RRDBNet, RRDBNetConfig
from gleansr.models.stylegan2 import StyleGAN2Config

CONFIG = GLEANConfig(8, StyleGAN2Config((8, 8, 6, 4), code_dim=8, mapping_layers=1), n_rrdb=2, features=8, growth=3)


@pytest.mark.parametrize("way", [ShuffledConv, TwoRows])
@torch.inference_mode()
def test_an_enlargement_is_the_plain_one(way: type[ShuffledConv | TwoRows]):
    up, x = PixelShuffleUp(6, 5), torch.randn(2, 6, 4, 3)
    for parameter in up.parameters():
        nn.init.normal_(parameter)  # its sub-pixels begin equal
    torch.testing.assert_close(way(*enlargement(up))(x), up(x), rtol=0, atol=2e-5)


@pytest.mark.parametrize("wide", [0, 1000])
@pytest.mark.parametrize(
    "config",
    [CONFIG, lighten(CONFIG), GLEANConfig(8, NoBankConfig((8, 8, 6, 4)), n_rrdb=2, features=8, growth=3)],
    ids=["full", "light", "without a bank"],
)
@torch.inference_mode()
def test_a_glean_is_the_same_function_and_stays_as_it_is(config: GLEANConfig, wide: int):
    torch.manual_seed(0)
    model = GLEAN(config).eval()
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    lr = torch.rand(2, 3, 8, 8) * 2 - 1
    expected = model(lr)
    twin = exportable(model, wide)
    assert (twin(lr) - expected).abs().max() < 1e-5 * expected.std()
    assert torch.equal(model(lr), expected)
    ups = [module for module in twin.modules() if isinstance(module, TwoRows)]
    assert len(ups) == (0 if wide else 2)
    shared = {id(parameter) for parameter in model.parameters()} & {id(parameter) for parameter in twin.parameters()}
    assert len(shared) == len(list(model.parameters())) - 2 * 2 - 2  # but those of the enlargements and of the last convolution


@torch.inference_mode()
def test_an_esrgan_is_the_same_function():
    torch.manual_seed(0)
    model, lr = RRDBNet(RRDBNetConfig(scale=2, features=4, growth=2, n_blocks=2)).eval(), torch.rand(2, 3, 6, 10)
    torch.testing.assert_close(exportable(model)(lr), model(lr), rtol=0, atol=1e-5)
