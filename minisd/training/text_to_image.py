"""Train the UNet, and the text encoder with it, on captioned latents of Sticker World (Rombach et al. 2022, eq. 3)."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from minisd.configs import CLIPTextConfig, UNetConfig
from minisd.errors import MismatchError
from minisd.models import VAE, CLIPTextTransformer, UNet
from minisd.pipeline import StableDiffusion
from minisd.schedulers import DDIM, NoiseSchedule
from minisd.tokenizer import Tokenizer
from minisd.training.autoencoder import VAE_CONFIG
from minisd.training.trainer import Recipe, train
from minisd.training.vocabulary import learn_vocabulary
from minisd.world.captions import WORDS, caption
from minisd.world.palette import COLOURS as ALL_COLOURS
from minisd.world.render import render
from minisd.world.scene import SIZES as ALL_SIZES
from minisd.world.scene import Scene, sample_scene
from minisd.world.shapes import THINGS
from minisd.world.splits import held_out

UNET_CONFIG = UNetConfig(
    channels=(32, 64, 128),
    depths=(0, 1, 1),
    heads=(2, 4, 8),
    layers_per_block=1,
    context_width=128,
    sample_size=16,
    norm_groups=8,
    only_cross_attention=(False, False, False),
)
TEXT_LAYERS = 2
# Zero terminal SNR: otherwise the background's colour, the mean of the latents, shows through the last noise level.
SCHEDULE = NoiseSchedule(prediction_type="v_prediction", rescale_betas_zero_snr=True)
SCHEDULER = DDIM(SCHEDULE, timestep_spacing="trailing", steps_offset=0, set_alpha_to_one=True)
# The part of Sticker World that the embedded model is trained on: what an hour or two of one CPU core can teach.
SHAPES = {"circle", "square", "triangle", "star"}
COLOURS = {"red", "orange", "yellow", "green", "blue", "purple"}
SIZES = {"medium", "large"}  # of small things the shape hardly shows in the loss
NOT_TAUGHT = {*THINGS} - SHAPES | {*ALL_COLOURS} - COLOURS | {*ALL_SIZES} - SIZES
TAUGHT_WORDS = " ".join(word for word in WORDS if word not in NOT_TAUGHT)
SHORT = 24  # tokens of a text in the first part of the training: captions are shorter, and padding costs as much
NO_CAPTION = 0.1  # share of empty captions: what classifier-free guidance needs (Ho & Salimans 2022)


def new_tokenizer() -> Tokenizer:
    """The vocabulary of Sticker World."""
    return learn_vocabulary(WORDS)


def text_config(vocab_size: int) -> CLIPTextConfig:
    """The sizes of the text encoder."""
    return CLIPTextConfig(vocab_size, width=UNET_CONFIG.context_width, layers=TEXT_LAYERS, heads=4, mlp_width=4 * 128)


def check_sizes(sd: StableDiffusion) -> None:
    """Raise MismatchError for a model that training cannot start from; its vocabulary may be another one."""
    sizes = (sd.vae.config, sd.unet.config, sd.text_encoder.config)
    if sizes != (VAE_CONFIG, UNET_CONFIG, text_config(sd.text_encoder.config.vocab_size)):
        raise MismatchError("the model to start from has other sizes than the one to train; start from 'sticker'.")


class Denoiser(nn.Module):
    """What is trained together: the UNet and the text encoder that speaks to it."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.unet = UNet(UNET_CONFIG)
        self.text_encoder = CLIPTextTransformer(text_config(vocab_size))
        nn.init.normal_(self.text_encoder.token_embedding.weight, std=0.2)
        nn.init.normal_(self.text_encoder.position_embedding.weight, std=0.1)
        nn.init.zeros_(self.unet.conv_out.weight)


def new_denoiser(tokenizer: Tokenizer, seed: int = 0) -> Denoiser:
    """A fresh denoiser for a vocabulary."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Denoiser(len(tokenizer))


@torch.no_grad()
def adopt(model: Denoiser, tokenizer: Tokenizer, start: StableDiffusion) -> None:
    """Give a denoiser the weights of another model; of its token embeddings, those that both vocabularies have."""
    model.unet.load_state_dict(start.unet.state_dict())
    weights = start.text_encoder.state_dict()
    known = [(i, start.tokenizer.token_to_id(token)) for token, i in tokenizer.vocab.items()]
    here, there = zip(*((i, j) for i, j in known if j is not None), strict=True)
    embeddings = model.text_encoder.token_embedding.weight.clone()
    embeddings[list(here)] = weights["token_embedding.weight"][list(there)]
    model.text_encoder.load_state_dict(weights | {"token_embedding.weight": embeddings})


def taught(scene: Scene) -> bool:
    """Whether a scene is in the part of the world that is taught."""
    in_lessons = (t.shape in SHAPES and t.colour in COLOURS and t.size in SIZES for t in scene.things)
    return not held_out(scene) and all(in_lessons)


def taught_scenes(count: int, seed: int) -> list[Scene]:
    """The first `count` scenes of a seed that are taught; seven in ten show two things: the harder lesson."""
    generator = torch.Generator().manual_seed(seed)
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = sample_scene(generator, two=0.95, white=0.8)  # most scenes of two things are thrown away
        if taught(scene):
            scenes.append(scene)
    return scenes


@torch.no_grad()
def latent_pool(vae: VAE, scenes: list[Scene], chunk: int = 64) -> Tensor:
    """Scenes -> latents (N, C, h, w), scaled to unit variance: encoded once, seen many times."""
    size = vae.config.sample_size
    with torch.autocast("cpu", torch.bfloat16):
        chunks = [vae.encode(render(scenes[i : i + chunk], size)).mean for i in range(0, len(scenes), chunk)]
    return vae.config.scaling_factor * torch.cat(chunks).float()


def expected_loss(t: Tensor) -> Tensor:
    """About what a half-trained model's loss is at timesteps t (B,): its inverse is a good weight (Karras et al. 2024).

    Unweighted, three quarters of the loss come from the noisiest third, where nobody can know what goes where, and the
    middle, where shapes are decided, is hardly heard. The numbers were read from this model after 2,000 steps.
    """
    signal = SCHEDULE.alpha_bars[t].float()
    return 0.035 + 0.32 * (1 - signal) ** 16 + 0.1 * signal**32


def train_text_to_image(
    vae: VAE,
    minutes: float,
    path: Path,
    report: Callable[[str], None],
    pool: int = 24_000,
    batch: int = 24,
    start: StableDiffusion | None = None,
    steps: int | None = None,
) -> tuple[Tokenizer, Denoiser]:
    """Train a denoiser, fresh or from `start`, or continue the run at `path`, for `minutes` or `steps` in all.

    Returns the tokenizer and the moving average of the denoiser. Raises MismatchError when `start` has other sizes.
    """
    tokenizer = new_tokenizer()
    model = new_denoiser(tokenizer)
    if start is not None:
        check_sizes(start)
        adopt(model, tokenizer, start)
    scenes = taught_scenes(pool, seed=1)
    latents = latent_pool(vae, scenes)
    report(f"{pool} scenes encoded, latents mean {latents.mean():.3f} deviation {latents.std():.3f}")

    def loss(generator: torch.Generator, progress: float) -> Tensor:
        rows = torch.randint(pool, (batch,), generator=generator)
        x0 = latents[rows]
        captions = [caption(scenes[row], generator) for row in rows.tolist()]
        dropped = torch.rand(batch, generator=generator) < NO_CAPTION
        ids = tokenizer(["" if drop else text for drop, text in zip(dropped.tolist(), captions, strict=True)])
        ids = ids[:, :SHORT] if progress < 0.6 else ids
        # one timestep of each of `batch` equal stretches: less variance than drawing them independently
        stretch = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
        t = (stretch * SCHEDULE.num_train_timesteps).long()
        noise = torch.randn(x0.shape, generator=generator)
        prediction = model.unet(SCHEDULE.add_noise(x0, noise, t), t, model.text_encoder(ids))
        each = (prediction.float() - SCHEDULE.velocity(x0, noise, t)).square().mean((1, 2, 3))
        return (each / expected_loss(t)).mean()

    recipe = Recipe(minutes, steps, learning_rate=1e-3, warmup_steps=300, bfloat16=True)
    average = train(model, loss, recipe, path, report)
    return tokenizer, average
