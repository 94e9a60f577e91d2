"""The layouts of the public implementations of StyleGAN2: the same tensors under different names.

No implementation transposes, flips or scales a weight relative to another.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gleansr.checkpoints.native import StoredNetwork
from gleansr.checkpoints.weights import Shape, Weights
from gleansr.models.stylegan2 import StyleGAN2Config


def leading_axis(name: str, shape: Shape) -> Shape:
    """The shape of a tensor in layouts with a batch axis of convolutions and vectors of length 1 for scalars."""
    if ".noise_strength" in name:
        return (1,)
    if "synthesis.to_rgb." in name and name.endswith(".bias") and "affine" not in name:
        return (1, 3, 1, 1)
    if "synthesis." in name and name.endswith(".conv.weight"):
        return (1, *shape)
    return shape


@dataclass(frozen=True)
class StyleGAN2Layout:
    """The tensor names of one implementation.

    The tables map native to foreign names. In native names `{n}` numbers the layers of the mapping, `{i}` those of the
    synthesis, `{j}` the RGB layers and `{b}` the discriminator's blocks. In foreign names `{k}` is that number, `{k1}` the
    next one, and `{layer}`, `{rgb}`, `{block}` and `{top}` (the discriminator's first block) come from the functions.
    """

    generator: Mapping[str, str]
    """The generator's tensors; `w_avg` is optional."""
    discriminator: Mapping[str, str]
    """The discriminator's tensors."""
    layer: Callable[[int], str]
    """Name of the synthesis layer i."""
    rgb: Callable[[int], str]
    """Name of the RGB layer j."""
    block: Callable[[int, int], str]
    """Name of block b of n, from the largest size down."""
    filters: Mapping[str, float]
    """Stored filters, see `Weights.translate`."""
    shape: Callable[[str, Shape], Shape] = leading_axis
    """Foreign shapes, see `Weights.translate`."""

    def generator_config(self, weights: Weights, clamp: float | None = None) -> StyleGAN2Config:
        """The architecture of a generator, from the shapes of its tensors."""
        n_layers = weights.count(lambda i: self._generator_name("synthesis.layers.{i}.bias", i))
        return StyleGAN2Config(
            channels=tuple(weights.size(self._generator_name("synthesis.layers.{i}.bias", i), 0) for i in range(0, n_layers + 1, 2)),
            code_dim=weights.size(self._generator_name("synthesis.layers.{i}.conv.affine.weight", 0), 1),
            mapping_layers=weights.count(lambda n: self._generator_name("mapping.layers.{n}.weight", n)),
            clamp=clamp,
        )

    def generator_names(self, config: StyleGAN2Config) -> dict[str, str]:
        """Native -> foreign names of a generator's tensors."""
        n = len(config.channels)
        counts = {"{n}": config.mapping_layers, "{i}": 2 * n - 1, "{j}": n}
        return {
            native.format(n=k, i=k, j=k): self._generator_name(native, k)
            for native in self.generator
            for k in range(next((count for field, count in counts.items() if field in native), 1))
        }

    def read_generator(self, weights: Weights, clamp: float | None = None) -> StoredNetwork:
        """The generator; `clamp` cannot be inferred from shapes."""
        config = self.generator_config(weights, clamp)
        names = self.generator_names(config)
        if names.get("w_avg") not in weights.tensors:
            names.pop("w_avg", None)
        return weights.translate("stylegan2", config, names, self.shape, self.filters)

    def read_discriminator(self, weights: Weights, clamp: float | None = None, stddev_group: int | None = 4) -> StoredNetwork:
        """The discriminator; `clamp` and `stddev_group` cannot be inferred from shapes."""
        n_blocks = max(n for n in range(9) if n == 0 or {self.block(0, n), self.block(n - 1, n)} <= self._blocks(weights))
        top_down = [
            weights.size(self._discriminator_name("from_rgb.bias", 0, n_blocks), 0),
            *(weights.size(self._discriminator_name("blocks.{b}.conv2.bias", b, n_blocks), 0) for b in range(n_blocks)),
        ]
        config = StyleGAN2Config(tuple(top_down[::-1]), clamp=clamp, stddev_group=stddev_group)
        names = {
            native.format(b=b): self._discriminator_name(native, b, n_blocks)
            for native in self.discriminator
            for b in range(n_blocks if "{b}" in native else 1)
        }
        return weights.translate("stylegan2-discriminator", config, names, filters=self.filters)

    def _generator_name(self, native: str, k: int) -> str:
        return self.generator[native].format(k=k, k1=k + 1, layer=self.layer(k), rgb=self.rgb(k))

    def _discriminator_name(self, native: str, b: int, n_blocks: int) -> str:
        return self.discriminator[native].format(block=self.block(b, n_blocks), top=self.block(0, n_blocks))

    def _blocks(self, weights: Weights) -> set[str]:
        ending = self.discriminator["blocks.{b}.conv2.bias"].removeprefix("{block}")
        return {name.removesuffix(ending) for name in weights.tensors if name.endswith(ending)}
