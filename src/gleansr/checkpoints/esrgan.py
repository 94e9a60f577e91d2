"""ESRGAN, ESRGAN+ and nESRGAN+ in the layouts of their authors: bare state dicts.

The older layout, of ESRGAN's first code, most networks trained with it and ESRGAN+, numbers the layers of one list ("model.3.weight"). The
newer one, of the released RRDB_ESRGAN_x4.pth and BSRGAN, names them ("upconv1.weight"). ESRGAN+'s own program does not require all tensors,
because it also loads plain ESRGAN's files, which lack the 1x1 convolutions; files of ESRGAN+ are complete and read strictly. The number of
doublings gives the scale; a single enlargement by 3, which the older code allows, has the same tensors as one by 2 and is read as such. The
noise of training is not in the files and takes its default.
"""

from gleansr.checkpoints.basicsr import dense_names, enlargement
from gleansr.checkpoints.native import StoredNetwork
from gleansr.checkpoints.weights import Weights, pair
from gleansr.models.esrgan_plus import ESRGANPlusConfig
from gleansr.models.rrdb import RRDBNetConfig


def esrgan_plus(weights: Weights) -> StoredNetwork:
    """An ESRGAN+ or nESRGAN+, in the older layout."""
    features, growth, n_blocks, doublings = _older_sizes(weights)
    config = ESRGANPlusConfig(2**doublings, features, growth, n_blocks)
    names = _older_names(n_blocks, doublings)
    for block in range(n_blocks):
        for dense in range(3):
            names[f"trunk.body.{block}.blocks.{dense}.skip.weight"] = f"model.1.sub.{block}.RDB{dense + 1}.conv1x1.weight"
    return weights.translate("esrgan+", config, names)


def older(weights: Weights) -> StoredNetwork:
    """An ESRGAN in the older layout; the input channels reveal folded inputs of converted files."""
    features, growth, n_blocks, doublings = _older_sizes(weights)
    scale, folded = enlargement(weights, "model.0.weight", doublings)
    config = RRDBNetConfig(scale, features, growth, n_blocks, folded)
    return weights.translate("rrdbnet", config, _older_names(n_blocks, doublings))


def newer(weights: Weights) -> StoredNetwork:
    """An ESRGAN in the newer layout."""
    n_blocks = weights.count(lambda b: f"RRDB_trunk.{b}.RDB1.conv1.weight")
    doublings = weights.count(lambda u: f"upconv{u + 1}.weight")
    scale, folded = enlargement(weights, "conv_first.weight", doublings)
    growth = weights.size("RRDB_trunk.0.RDB1.conv1.weight", 0)
    config = RRDBNetConfig(scale, weights.size("conv_first.weight", 0), growth, n_blocks, folded)
    names = pair("trunk.first", "conv_first") | pair("trunk.last", "trunk_conv") | pair("high", "HRconv") | pair("out", "conv_last")
    names |= dense_names("trunk", n_blocks, lambda b, d, k: f"RRDB_trunk.{b}.RDB{d}.conv{k}")
    for u in range(doublings):
        names |= pair(f"ups.{u}", f"upconv{u + 1}")
    return weights.translate("rrdbnet", config, names)


def _older_sizes(weights: Weights) -> tuple[int, int, int, int]:
    """Features, growth, number of RRDBs and number of doublings."""
    n_blocks = weights.count(lambda b: f"model.1.sub.{b}.RDB1.conv1.0.weight")
    doublings = weights.count(lambda u: f"model.{3 + 3 * u}.weight")
    return weights.size("model.0.weight", 0), weights.size("model.1.sub.0.RDB1.conv1.0.weight", 0), n_blocks, doublings


def _older_names(n_blocks: int, doublings: int) -> dict[str, str]:
    """Native -> foreign names. The list is: convolution, RRDBs and their last convolution, (doubling, convolution, activation) for each
    doubling, convolution, activation, convolution. Only convolutions have tensors."""
    names = pair("trunk.first", "model.0") | pair("trunk.last", f"model.1.sub.{n_blocks}")
    names |= dense_names("trunk", n_blocks, lambda b, d, k: f"model.1.sub.{b}.RDB{d}.conv{k}.0")
    for u in range(doublings):
        names |= pair(f"ups.{u}", f"model.{3 + 3 * u}")
    return names | pair("high", f"model.{2 + 3 * doublings}") | pair("out", f"model.{4 + 3 * doublings}")
