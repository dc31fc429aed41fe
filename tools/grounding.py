"""What the grounding loss does to the heat maps: `python -m tools.grounding FOLDER --steps 1500`.

Two UNets are trained from scratch, for the same steps on the same scenes, with the autoencoder and the text encoder of
the embedded model: one with the loss on its attention, one without. Both play the pointing game. FOLDER keeps the two
runs, which continue if the command is repeated, and the rates as grounding.json.
"""

import argparse
from pathlib import Path
from typing import Any

import weights_loader
from minisd._internal.atomic_files import write_json
from minisd.pipeline import StableDiffusion
from minisd.sticker.evaluation import judge_prompts, play_pointing_game
from minisd.sticker.evaluation.prompt_suites import suite_examples
from minisd.sticker.training.unet import GROUNDING_WEIGHT, new_unet, train_unet
from minisd.training.trainer import TrainingBudget, TrainingRun
from weights_loader.sources import EMBEDDED

SUITE = "single"  # objects are right long before their relations are


def compare(folder: Path, steps: int, count: int, pool: int = 24_000, batch: int = 24) -> dict[str, Any]:
    """Train both UNets, or continue their runs; returns the share of exact images and of hits, of each.

    Raises ResumeError and OutputError for the files of the runs.
    """
    sd = weights_loader.load(EMBEDDED)
    prompts = [example.prompt for example in suite_examples(SUITE, count, 0, sd.defaults.words)]
    found: dict[str, Any] = {"steps": steps, "count": count}
    for name, weight in (("with", GROUNDING_WEIGHT), ("without", 0.0)):
        run = TrainingRun(folder / f"{name}.pt", TrainingBudget(0, steps), lambda line: print(line, flush=True))
        unet = train_unet(sd.vae, sd.tokenizer, sd.text_encoder, new_unet(), run, pool, batch, grounding=weight)
        trained = StableDiffusion(sd.tokenizer, sd.text_encoder, sd.vae, unet.eval(), sd.scheduler, sd.defaults)
        hits, chance = play_pointing_game(trained, prompts, seed=0)
        found[name] = {
            "exact": judge_prompts(trained, prompts, seed=0).exact.as_json(),
            "pointing": hits.as_json() if hits.total else None,
            "chance": chance,
        }
        print(name, found[name], flush=True)
    write_json(found, folder / "grounding.json", overwrite=True)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="keeps the two runs")
    parser.add_argument("--steps", type=int, default=1500, help="of each training")
    parser.add_argument("--count", type=int, default=96, help="prompts of the pointing game")
    args = parser.parse_args()
    compare(args.folder, args.steps, args.count)
