"""The measurements of `minisd eval`; each is printed as soon as it is made."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import weights_loader
from minisd.models import CLIP
from minisd.pipeline import StableDiffusion
from minisd.sticker.evaluation import judge_prompts, measure_inversion, measure_task, play_pointing_game, skill_rates
from minisd.sticker.evaluation.adapters import measure_embedding, measure_night_lora
from minisd.sticker.evaluation.best_of_n import measure_best_of_n
from minisd.sticker.evaluation.diversity import measure_diversity
from minisd.sticker.evaluation.edits import measure_edits
from minisd.sticker.evaluation.frechet import measure_distances
from minisd.sticker.evaluation.judging import Judged, Rate
from minisd.sticker.evaluation.previews import measure_preview
from minisd.sticker.evaluation.prompt_suites import suite_examples
from minisd.sticker.evaluation.reconstruction import TARGET_EXACT_RATE, measure_reconstruction
from minisd.sticker.evaluation.students import image_seconds, prediction_error
from minisd.sticker.evaluation.subjects import measure_subject
from minisd.sticker.evaluation.tasks import Measurements
from minisd.sticker.evaluation.views import ANAGRAMS, measure_anagram, measure_canvas, measure_loop
from minisd.sticker.training.dataset import FIRST_TEST_SEED
from minisd.sticker.training.retrieval import hard_negative_accuracy, retrieval_accuracy
from minisd.tokenizer import Tokenizer
from weights_loader.sources import EMBEDDED, EMBEDDED_TASKS

RETRIEVAL_SCENES = 1000  # CLIP finds the right one among them
BEST_OF_SUITES, BEST_OF = ("count", "held-out template"), 4  # CLIP chooses one of four images
CANVAS = 3, 2  # windows across and down
TIMED_PROMPT = "a red circle above a blue square"
DISTANCE_FACTOR = 5  # distances between sets need more images: the count times this


class Setup(NamedTuple):
    """The model, and the number, seed and steps of the images of each measurement.

    reuse_features, previews: of the suites, where previews are images by the model's preview decoder.
    """

    sd: StableDiffusion
    number: int
    seed: int
    steps: int | None
    reuse_features: int = 1
    previews: bool = False

    def prompts(self, suite: str, count: int | None = None) -> list[str]:
        """Prompts of a suite, in the words that the model was trained on; none where it lacks them."""
        found = suite_examples(suite, self.number if count is None else count, self.seed, self.sd.defaults.words)
        return [example.prompt for example in found]


def judge_suites(setup: Setup, suites: list[str]) -> tuple[dict[str, Any], dict[str, Judged]]:
    """Draw and judge the prompts of each suite; the rates, printed, and the images with their verdicts."""
    table: dict[str, Any] = {}
    judged: dict[str, Judged] = {}
    for suite in suites:
        prompts = setup.prompts(suite)
        if not prompts:
            print(f"{suite:17} skipped: the model was not trained on the words")
            continue
        judged[suite] = judge_prompts(
            setup.sd,
            prompts,
            setup.seed,
            setup.steps,
            reuse_features=setup.reuse_features,
            previews=setup.previews,
            label=suite,
        )
        table[suite] = {skill: rate.as_json() for skill, rate in skill_rates(prompts, judged[suite].verdicts).items()}
        for skill, rate in table[suite].items():
            print(f"{suite:17} {skill:10} {_format_rate(rate)}", flush=True)
    return table, judged


def measure_previews(setup: Setup, prompts: Sequence[str]) -> dict[str, Any]:
    """How near the previews are to the images of the exact decoder, printed."""
    quality = measure_preview(setup.sd, prompts, setup.seed, setup.steps)
    print(
        f"previews: PSNR to the exact decoder {quality.mean_psnr:.1f} dB mean, {quality.worst_psnr:.1f} worst of "
        f"{len(prompts)} images; {quality.early_psnr:.1f} mean of the x0 in the first quarter of the steps",
        flush=True,
    )
    return quality._asdict()


def measure_autoencoder(setup: Setup) -> dict[str, Any]:
    """How well the autoencoder reconstructs scenes, printed."""
    quality = measure_reconstruction(setup.sd.vae, setup.number, setup.seed)
    exact = quality.exact.as_json()
    verdict = "passes" if quality.exact.value >= TARGET_EXACT_RATE else "misses"
    print(
        f"autoencoder: {quality.mean_psnr:.1f} dB mean, {quality.worst_percent_psnr:.1f} in the worst 1 %, "
        f"{quality.worst_psnr:.1f} worst; SSIM {quality.mean_ssim:.4f}; exact {_format_rate(exact).strip()}, "
        f"{verdict} {100 * TARGET_EXACT_RATE:.1f} %"
    )
    return quality._asdict() | {"exact": exact}


def measure_free_attributes(setup: Setup) -> dict[str, Any]:
    """How evenly the model draws the attributes that a prompt leaves open, printed."""
    sd, count, seed, steps, *_ = setup
    measured = measure_diversity(sd, count, seed, steps, label="free attributes")
    for prompt, attributes in measured.items():
        parts = [f"{k} {each['distance']:.3f} ({each['chance']:.3f} by chance)" for k, each in attributes.items()]
        print(f'free in "{prompt}": {", ".join(parts)}')
    return measured


def measure_pointing(setup: Setup, suite: str) -> dict[str, float]:
    """The pointing game on a suite, printed; empty where no object was drawn as described."""
    prompts, label = setup.prompts(suite), f"pointing, {suite}"
    rate, chance = play_pointing_game(setup.sd, prompts, setup.seed, setup.steps, label=label)
    if rate.total == 0:
        print(f"{suite:17} pointing   no object was drawn as described")
        return {}
    print(f"{suite:17} pointing   {_format_rate(rate.as_json())} objects ({100 * chance:.1f} % by chance)", flush=True)
    return rate.as_json() | {"chance": chance}


def measure_clip(setup: Setup, clip: CLIP, tokenizer: Tokenizer) -> dict[str, Any]:
    """What CLIP recognises, distances between sets of images in its features, and its choices; printed."""
    sd, count, seed, steps, *_ = setup
    shares = retrieval_accuracy(clip, tokenizer, RETRIEVAL_SCENES, FIRST_TEST_SEED + seed)
    shares["hard negatives"] = hard_negative_accuracy(clip, tokenizer, RETRIEVAL_SCENES, FIRST_TEST_SEED + seed)
    recognised = {
        name: Rate(round(share * RETRIEVAL_SCENES), RETRIEVAL_SCENES).as_json() for name, share in shares.items()
    }
    for name, rate in recognised.items():
        print(f"{'clip':17} {name:15} {_format_rate(rate)}")
    distances = measure_distances(sd, clip, DISTANCE_FACTOR * count, seed, steps, label="distances")
    for name, each in distances.items():
        numbers = f"Frechet {each.frechet:.3f}, MMD {each.mmd:.5f}, {DISTANCE_FACTOR * count} images"
        print(f"{'distance':17} {name:15} {numbers}", flush=True)
    measured: dict[str, Any] = recognised | {
        "distances": {name: each._asdict() for name, each in distances.items()},
        "pictures": DISTANCE_FACTOR * count,
    }
    for suite in BEST_OF_SUITES:
        prompts = setup.prompts(suite, max(1, count // 2))
        if not prompts:
            continue
        label = f"best of {BEST_OF}, {suite}"
        result = measure_best_of_n(sd, clip, tokenizer, prompts, BEST_OF, seed, steps, label=label)
        best = {name: getattr(result, name).as_json() for name in ("first", "chosen", "any")}
        for name, rate in best.items():
            print(f"{suite:17} {f'{name} of {BEST_OF}':15} {_format_rate(rate)}", flush=True)
        measured[label] = best | {"auc": result.auc}
    return measured


def measure_inversions(setup: Setup) -> dict[str, Any]:
    """DDIM inversion with and without refinement, printed."""
    found = {}
    for refine in (0, 2):
        quality = measure_inversion(
            setup.sd, setup.number, setup.seed, refine=refine, label=f"inversion, refine {refine}"
        )
        found[f"refine {refine}"] = quality._asdict()
        print(
            f"inversion, 50 steps, guidance 1, refine {refine}: PSNR {quality.mean_psnr:.1f} dB mean, "
            f"{quality.worst_psnr:.1f} dB worst; the autoencoder alone {quality.autoencoder_psnr:.1f} dB",
            flush=True,
        )
    return found


def measure_views(setup: Setup) -> dict[str, Any]:
    """Turned images, large images and a loop, printed."""
    sd, count, seed, steps, *_ = setup
    found: dict[str, Any] = {}
    for prompt, turn, turned in ANAGRAMS:
        name = f"{prompt}, {turn}: {turned}"
        found[name] = measure_anagram(sd, prompt, turn, turned, count, seed, steps).as_json()
        print(f"turned            {_format_rate(found[name])}  {name}", flush=True)
    columns, rows = CANVAS
    images = max(1, count // (columns * rows))
    prompts = setup.prompts("single", images * columns * rows)
    found["canvas"] = measure_canvas(sd, prompts, columns, rows, seed, steps).as_json()
    print(f"canvas            {_format_rate(found['canvas'])} windows of {columns} x {rows}", flush=True)
    loop = measure_loop(sd, max(8, count - count % 2), seed, steps)
    found["loop"] = loop._asdict() | {"exact": loop.exact.as_json()}
    print(
        f"loop              {_format_rate(found['loop']['exact'])} frames; difference to the next frame "
        f"{loop.step:.4f}, at most {loop.largest_step:.4f}, to the frame half a turn away {loop.apart:.4f}"
    )
    return found


def measure_subject_contexts(setup: Setup) -> dict[str, Any]:
    """A sks shape in contexts, printed."""
    rate = measure_subject(setup.sd, setup.seed, setup.steps, max(1, setup.number // 50), label="subject").as_json()
    print(f"subject           {_format_rate(rate)} images of a sks shape in 50 contexts", flush=True)
    return rate


def measure_edited_images(setup: Setup, count: int) -> dict[str, Any]:
    """Imagic, printed."""
    with tempfile.TemporaryDirectory() as folder:
        rates = measure_edits(setup.sd, count, setup.seed, Path(folder), label="edits")
    found = {f"eta {eta:g}": rate.as_json() for eta, rate in rates.at.items()} | {"best eta": rates.best.as_json()}
    for name, rate in found.items():
        print(f"edits             {_format_rate(rate)}  {name}", flush=True)
    return found


def measure_distilled(setup: Setup, teacher: StableDiffusion) -> dict[str, float]:
    """A student beside its teacher, printed; the predictions only if both make as many steps."""
    sd, found = setup.sd, {}
    steps, of_teacher = (each.defaults.num_inference_steps for each in (sd, teacher))
    if steps == of_teacher and sd.unet.config.guidance_width is not None:
        found["prediction error"] = prediction_error(sd, teacher, setup.number, setup.seed)
        print(f"student           {100 * found['prediction error']:.2f} % relative mean square error of its prediction")
    seconds = image_seconds(sd, teacher, TIMED_PROMPT)
    found |= {"seconds": seconds.student, "seconds of the teacher": seconds.teacher}
    print(
        f"student           {seconds.student:.3f} s for an image of {steps} steps, its teacher {seconds.teacher:.3f} s "
        f"of {of_teacher}: {seconds.teacher / seconds.student:.1f} times as fast"
    )
    return found


def measure_variants(count: int, seed: int, steps: int | None) -> dict[str, Measurements]:
    """Each variant of the embedded model at its task, printed."""
    measured: dict[str, Measurements] = {}
    for name in EMBEDDED_TASKS:
        measured[name] = measure_task(weights_loader.load(name), count, seed, steps, label=name)
        for quantity, value in measured[name].items():
            shown = _format_rate(value) if isinstance(value, dict) else f"{value:.2f}"
            print(f"{name:20} {quantity:27} {shown}", flush=True)
    return measured


def measure_adapters(count: int, seed: int) -> Measurements:
    """The rates of the embedded model with and without its embedding and its LoRA, printed."""
    sd, folder = weights_loader.load(EMBEDDED), weights_loader.resolve(EMBEDDED) / "adapters"
    found = {"pink star": measure_embedding(sd, count, seed, "pink star", "pink star")}
    found["not at night"] = measure_night_lora(sd, count, seed, "without LoRA")
    weights_loader.load_embedding(sd, folder / "candy.safetensors")
    found["<candy>"] = measure_embedding(sd, count, seed, "<candy>", "<candy>")
    weights_loader.load_lora(sd, folder / "night.safetensors")
    found["at night"] = measure_night_lora(sd, count, seed, "night")
    measured: Measurements = {name: rate.as_json() for name, rate in found.items()}
    for name, rate in found.items():
        print(f"{'adapters':20} {name:27} {_format_rate(rate.as_json())}", flush=True)
    return measured


def _format_rate(rate: dict[str, float]) -> str:
    return f"{100 * rate['rate']:5.1f} % ({100 * rate['low']:.1f} to {100 * rate['high']:.1f}) of {rate['count']}"
