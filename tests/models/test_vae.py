"""The autoencoder against AutoencoderKL, the Gaussian that it makes, and its numbers."""

import pytest
import torch
from support.small import VAES, copy_weights, oracle_vae, randomise, vae_like
from torch import nn

import minisd.models.stripes as stripes
from minisd.configs import SD1_VAE, VAEConfig
from minisd.models.vae import VAE, Gaussian, VAEMiddle
from weights_loader.names import diffusers as names

pytest.importorskip("diffusers")
from diffusers.models.unets.unet_2d_blocks import UNetMidBlock2D

BLOCK = {"rtol": 0, "atol": 1e-5}
NETWORK = 1e-4  # of the output's scale


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    assert got.shape == expected.shape
    scale = expected.abs().max()
    assert 1e-6 < scale < 1e4
    return float((got - expected).abs().max() / scale)


@pytest.fixture(params=[False, True], ids=["whole", "striped"], autouse=True)
def _stripes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test also with the maps in stripes of four rows."""
    if request.param:
        monkeypatch.setattr(stripes, "ROWS", 4)
        monkeypatch.setattr(stripes, "LARGE", 0)


@pytest.mark.parametrize("gain", [1.0, 0.03])
@pytest.mark.parametrize(("size", "scale"), [((48, 24), 1.0), ((48, 24), 1e-3), ((33, 21), 1.0)])
@pytest.mark.parametrize("shape", VAES)
@torch.no_grad()
def test_encode(shape: str, size: tuple[int, int], scale: float, gain: float) -> None:
    oracle = oracle_vae(shape, gain=gain)
    pixels = noise(2, 3, *size) * scale
    got, expected = vae_like(oracle).encode(pixels), oracle.encode(pixels).latent_dist
    assert relative_error(got.mean, expected.mean) < NETWORK
    assert relative_error(got.logvar, expected.logvar) < NETWORK


@pytest.mark.parametrize("gain", [1.0, 0.03])
@pytest.mark.parametrize(("size", "scale"), [((6, 3), 1.0), ((6, 3), 1e-3), ((5, 7), 1.0), ((33, 32), 1.0)])
@pytest.mark.parametrize("shape", VAES)
@torch.no_grad()
def test_decode(shape: str, size: tuple[int, int], scale: float, gain: float) -> None:
    oracle = oracle_vae(shape, gain=gain)
    vae = vae_like(oracle)
    latents = noise(2, vae.config.latent_channels, *size) * scale
    got = vae.decode(latents)
    assert relative_error(got, oracle.decode(latents).sample) < NETWORK
    assert tuple(got.shape[2:]) == tuple(side * vae.config.downscale for side in size)


@pytest.mark.parametrize("shape", VAES)
@torch.no_grad()
def test_parity_sees_each_wrong_epsilon(shape: str) -> None:
    """The tolerance of the tests above does not accept 1e-5 in the norms of one kind, in either half."""
    vae = vae_like(oracle_vae(shape, gain=0.03))
    pixels, latents = noise(2, 3, 48, 24) * 1e-3, noise(2, vae.config.latent_channels, 6, 3) * 1e-3

    def outputs() -> dict[str, torch.Tensor]:
        return {"encoder": vae.encode(pixels).mean, "decoder": vae.decode(latents)}

    right = outputs()
    for half in right:
        for kind in ("resnets", "norm_out"):
            norms = [
                m for n, m in vae.named_modules() if isinstance(m, nn.GroupNorm) and n.startswith(half) and kind in n
            ]
            for norm in norms:
                norm.eps = 1e-5
            assert relative_error(outputs()[half], right[half]) > NETWORK, (half, kind)
            for norm in norms:
                norm.eps = 1e-6


@pytest.mark.parametrize(("scale", "gain"), [(1.0, 1.0), (1e-3, 1.0), (1e-3, 1e-3)])
@torch.no_grad()
def test_middle(scale: float, gain: float) -> None:
    """With quiet residual blocks the attention, which stays loud, sees a variance of 1e-6."""
    oracle = UNetMidBlock2D(in_channels=32, temb_channels=None, resnet_eps=1e-6, resnet_groups=8, attention_head_dim=32)
    randomise(oracle, 1, gain)
    randomise(oracle.attentions[0], 2)
    table = names.vae(VAEConfig(channels=(32,)))
    inside = {
        ours.removeprefix("encoder.middle."): theirs.removeprefix("encoder.mid_block.")
        for ours, theirs in table.items()
        if ours.startswith("encoder.middle.")
    }
    ours = copy_weights(lambda: VAEMiddle(32, 8), inside, oracle)
    x = noise(2, 32, 7, 5) * scale
    right = ours(x)
    torch.testing.assert_close(right, oracle(x), **BLOCK)
    if gain < 1:
        ours.attention.norm.eps = 1e-5
        assert (ours(x) - right).abs().max() > 1e-4  # so the tolerance does not accept it


def test_nearly_constant_channels() -> None:
    """A group of mean 1 and deviation 0.01 is normed to 1e-4, as in contiguous memory."""
    x = 1 + 0.01 * noise(1, 8, 48, 24)
    exact = torch.nn.functional.group_norm(x.double(), 8, eps=1e-6)
    norm = VAE(VAEConfig(channels=(8,), norm_groups=8)).decoder.up[0].resnets[0].norm1
    got = norm(x.contiguous(memory_format=torch.channels_last))  # as the feature maps are
    assert (got - exact).abs().max() < 1e-4


def test_gaussian_samples_with_its_own_generator() -> None:
    moments = noise(2, 8, 3, 5)
    gauss = Gaussian(moments)
    assert torch.equal(gauss.mean, moments[:, :4])
    before = torch.get_rng_state()
    drawn = noise(2, 4, 3, 5, seed=9)
    got = gauss.sample(torch.Generator().manual_seed(9))
    torch.testing.assert_close(got, moments[:, :4] + (moments[:, 4:] / 2).exp() * drawn)
    assert torch.equal(torch.get_rng_state(), before)


def test_gaussian_clamps_the_log_variance() -> None:
    gauss = Gaussian(torch.cat([torch.zeros(1, 1, 1, 2), torch.tensor([[[[-1000.0, 1000.0]]]])], 1))
    torch.testing.assert_close(gauss.logvar.flatten(), torch.tensor([-30.0, 20.0]))


def test_divergence_is_that_of_torch() -> None:
    gauss = Gaussian(noise(2, 8, 3, 5))
    theirs = torch.distributions.kl_divergence(
        torch.distributions.Normal(gauss.mean, gauss.std), torch.distributions.Normal(0.0, 1.0)
    )
    torch.testing.assert_close(gauss.kl(), theirs.mean())


# The numbers of the architecture, each by itself.


def meta_vae(config: VAEConfig = SD1_VAE) -> VAE:
    with torch.device("meta"):
        return VAE(config)


def test_official_size() -> None:
    vae = meta_vae()
    assert sum(p.numel() for p in vae.parameters()) == 83_653_863
    assert len(vae.state_dict()) == 248


def test_every_norm_has_epsilon_1e_6_and_32_groups() -> None:
    norms = [m for m in meta_vae().modules() if isinstance(m, nn.GroupNorm)]
    assert len(norms) == 2 * (10 + 14) + 2 + 2
    assert {(m.eps, m.num_groups) for m in norms} == {(1e-6, 32)}


def test_the_encoder_pads_right_and_below() -> None:
    steps = [level.resample for level in meta_vae().encoder.down[:-1]]
    assert [(s.pad_right_below, s.conv.padding, s.conv.stride) for s in steps] == [(True, (0, 0), (2, 2))] * 3


def test_attention_has_one_head_and_biases() -> None:
    for half in (meta_vae().encoder, meta_vae().decoder):
        attention = half.middle.attention.attention
        assert attention.heads == 1
        assert all(linear.bias is not None for linear in (attention.q, attention.k, attention.v, attention.out))


def test_scaling_factor_is_that_of_sd_and_not_applied_here() -> None:
    assert SD1_VAE.scaling_factor == 0.18215
    oracle = oracle_vae("two levels")
    vae, latents = vae_like(oracle), noise(1, 4, 4, 4)
    with torch.no_grad():
        before = vae.decode(latents)
        vae.config = VAEConfig(**{**vars(vae.config), "scaling_factor": 7.0})
        assert torch.equal(vae.decode(latents), before)
