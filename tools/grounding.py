"""What the grounding loss does to the heat maps: `python -m tools.grounding FOLDER --steps 1500`.

Two UNets are trained from scratch, for the same steps on the same scenes, with the autoencoder and the text encoder of
the embedded model: one with the loss on its attention, one without. Both play the pointing game, on true images with
noise, since after a short training they draw nothing that could be judged. So does the shipped UNet. FOLDER keeps the
two runs, which continue if the command is repeated, and the rates as grounding.json.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import weights_loader
from minisd._internal.atomic_files import write_json
from minisd.interpret.attention_maps import record_attention, resize_map
from minisd.pipeline import StableDiffusion
from minisd.sticker.evaluation.judging import BATCH, Rate
from minisd.sticker.evaluation.pointing_game import PointingScore, unique_nouns
from minisd.sticker.evaluation.prompt_suites import Example, suite_examples
from minisd.sticker.training.diffusion import SCHEDULE, encode_scenes
from minisd.sticker.training.unet import GROUNDING_WEIGHT, new_unet, train_unet
from minisd.sticker.world.render import masks
from minisd.training.trainer import TrainingBudget, TrainingRun
from weights_loader.sources import EMBEDDED

SUITES = ("single", "two")
TIMESTEPS = (250, 500, 750)  # a heat map is the mean over these


def compare(folder: Path, steps: int, count: int, pool: int = 24_000, batch: int = 24) -> dict[str, Any]:
    """Train both UNets, or continue their runs; returns the share of hits of each in each suite.

    Raises ResumeError and OutputError for the files of the runs.
    """
    sd = weights_loader.load(EMBEDDED)
    unets = {"shipped": sd.unet}
    for name, weight in (("with", GROUNDING_WEIGHT), ("without", 0.0)):
        run = TrainingRun(folder / f"{name}.pt", TrainingBudget(0, steps), lambda line: print(line, flush=True))
        unets[name] = train_unet(sd.vae, sd.tokenizer, sd.text_encoder, new_unet(), run, pool, batch, grounding=weight)
    found: dict[str, Any] = {"steps": steps}
    for name, unet in unets.items():
        trained = StableDiffusion(sd.tokenizer, sd.text_encoder, sd.vae, unet.eval(), sd.scheduler, sd.defaults)
        found[name] = {}
        for suite in SUITES:
            hits, chance = point_in_scenes(trained, suite_examples(suite, count, 0, sd.defaults.words), seed=0)
            found[name][suite] = {"hits": hits.as_json(), "chance": chance}
            print(name, suite, hits, f"chance {chance:.3f}", flush=True)
    write_json(found, folder / "grounding.json", overwrite=True)
    return found


@torch.inference_mode()
def point_in_scenes(sd: StableDiffusion, examples: Sequence[Example], seed: int) -> PointingScore:
    """The pointing game on true images with noise: is a noun's heat map hottest inside the object that it names?

    A noun counts if it names exactly one object of the prompt, and the image has exactly one object of its shape.
    """
    generator, side = torch.Generator().manual_seed(seed), sd.vae.config.sample_size
    hits, covered = 0, []
    for k in range(0, len(examples), BATCH):
        batch = examples[k : k + BATCH]
        latents = encode_scenes(sd.vae, [each.scene for each in batch])
        text = sd.text_encoder(sd.tokenizer([each.prompt for each in batch]))
        with record_attention(sd) as maps:
            for t in TIMESTEPS:
                times = torch.full((len(batch),), t)
                noise = torch.randn(latents.shape, generator=generator)
                sd.unet(SCHEDULE.add_noise(latents, noise, times), times, text)
        for row, (prompt, scene) in enumerate((each.prompt, each.scene) for each in batch):
            shapes = [obj.shape for obj in scene.objects]
            for noun in unique_nouns(prompt):
                if shapes.count(noun) == 1:
                    inside = masks([scene], side)[0, shapes.index(noun)] >= 0.5
                    heat = resize_map(maps.heat_map(noun, prompt, picture=row), (side, side))
                    hits += bool(inside.flatten()[heat.argmax()])
                    covered.append(float(inside.float().mean()))
    return PointingScore(Rate(hits, len(covered)), sum(covered) / max(1, len(covered)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="keeps the two runs")
    parser.add_argument("--steps", type=int, default=1500, help="of each training")
    parser.add_argument("--count", type=int, default=96, help="prompts of each suite")
    args = parser.parse_args()
    compare(args.folder, args.steps, args.count)
