import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dqs_lightning.diffusion import MLP, Backbone, Denoiser, SimBa
from dqs_lightning.registry import components, describe


@pytest.fixture(params=[MLP((12, 7)), MLP((12, 7), layer_norm=True), SimBa(12, 2, 3)], ids=["mlp", "norms", "simba"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return request.param


def random(layers: nn.ModuleList) -> nn.ModuleList:
    for parameter in layers.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layers.double()


def test_all_backbones_are_found() -> None:
    assert set(components(Backbone)) == {"MLP", "SimBa"}


def test_a_plain_mlp() -> None:
    backbone, x = MLP((12, 7, 5)), torch.randn(3, 12, dtype=torch.float64)
    first, second = layers = random(backbone.layers())
    torch.testing.assert_close(backbone(layers, x, F.silu), F.silu(second(F.silu(first(F.silu(x))))))


def test_an_mlp_with_normalised_layers() -> None:
    backbone, x = MLP((12, 7), layer_norm=True), torch.randn(3, 12, dtype=torch.float64)
    linear, before, after = layers = random(backbone.layers())
    torch.testing.assert_close(backbone(layers, x, F.relu), F.relu(after(linear(F.relu(before(x))))))


def test_simba_adds_normalised_perceptrons_to_a_residual_stream() -> None:
    backbone, x = SimBa(12, 2, 3), torch.randn(3, 12, dtype=torch.float64)
    layers = random(backbone.layers())
    stream = x
    for norm, up, down in (layers[:3], layers[3:6]):
        assert (up.out_features, down.out_features) == (36, 12)
        stream = stream + down(F.relu(up(norm(stream))))
    torch.testing.assert_close(backbone(layers, x, F.relu), layers[6](stream))


def test_input_and_output_widths(backbone: Backbone) -> None:
    assert backbone(backbone.layers(), torch.randn(5, 2, backbone.width), F.relu).shape == (5, 2, backbone.features)


def test_every_linear_layer_goes_through_apply(backbone: Backbone) -> None:
    layers, applied = backbone.layers(), []

    def apply(layer: nn.Linear, hidden: Tensor) -> Tensor:
        applied.append(layer)
        return layer(hidden)

    backbone(layers, torch.randn(2, backbone.width), F.relu, apply)
    assert applied == [layer for layer in layers.modules() if isinstance(layer, nn.Linear)]


def test_two_networks_share_no_weight(backbone: Backbone) -> None:
    first, second = backbone.layers(), backbone.layers()
    assert not {id(parameter) for parameter in first.parameters()} & {
        id(parameter) for parameter in second.parameters()
    }


def test_a_denoiser_with_each_backbone(backbone: Backbone) -> None:
    """A denoiser bound to a condition computes the same function, in bfloat16 up to rounding."""
    torch.manual_seed(0)
    denoiser = Denoiser(2, 3, backbone)
    nn.init.normal_(denoiser.last.weight, std=0.3)
    x, sigma, condition = torch.randn(4, 5, 2), torch.rand(4, 5, 1) + 0.1, torch.randn(5, 3)
    with torch.no_grad():
        exact = denoiser(x, sigma, condition)
        same = denoiser.bind(condition, torch.float32)(x, sigma)
        short = denoiser.bind(condition, torch.bfloat16)(x, sigma)
    torch.testing.assert_close(same.mean, exact.mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(short.mean, exact.mean, rtol=0.05, atol=0.03)
    assert not torch.equal(short.mean, same.mean)


def test_backbones_are_described_by_plain_values(backbone: Backbone) -> None:
    described = describe(backbone)
    again = components(Backbone)[described["class_path"].rpartition(".")[2]](**described["init_args"])
    assert vars(again) == vars(backbone)


@pytest.mark.parametrize(
    ("cls", "arguments", "named"),
    [
        (MLP, {"hidden": ()}, "hidden"),
        (MLP, {"hidden": (3, 0)}, "hidden"),
        (SimBa, {"width": 0}, "width"),
        (SimBa, {"blocks": 0}, "blocks"),
        (SimBa, {"expansion": 0}, "expansion"),
    ],
)
def test_sizes_below_one_are_refused(cls: type[Backbone], arguments: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=f"{named}="):
        cls(**arguments)
