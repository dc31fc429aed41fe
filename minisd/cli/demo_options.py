"""The options of `minisd demo` and `minisd app`; importing them loads no PyTorch.

The destination of an option is the name of the demo's setting; a demo has some of them.
"""

from pathlib import Path

from minisd.cli.parser import Parser, real, whole


def demo(parser: Parser) -> None:
    """Show what a component of the model does, as numbers and one image.

    Without a name, lists the demos. Each has some of the settings below, and says which if another one is given.
    """
    what = parser.add_argument_group("what to show")
    what.add_argument("name", nargs="?", help="name of a demo, such as vae")
    what.add_argument("--model", help="name, hub id, folder or file (default: the embedded model, of the demo's task)")
    settings = parser.add_argument_group("settings of demos (default: an example)")
    settings.add_argument("--prompt", help="description of the image; @FILE reads it from a file")
    settings.add_argument("--negative", dest="negative_prompt", metavar="PROMPT", help="negative prompt: guidance")
    settings.add_argument("--other", metavar="TEXT", help="what to compare with, a prompt: text; a word: surgery")
    settings.add_argument("--word", help="one word of the prompt: heat-maps, surgery")
    settings.add_argument("--seed", type=whole, metavar="N", help="seed of the noise")
    settings.add_argument("--steps", dest="num_inference_steps", type=whole, metavar="N", help="denoising steps")
    settings.add_argument("--guidance", dest="guidance_scale", type=real, metavar="SCALE", help="guidance scale")
    settings.add_argument("--image", type=Path, metavar="FILE", help="vae, schedule, image-to-image, inpainting")
    settings.add_argument("--strength", type=real, metavar="X", help="how much of --image to change: image-to-image")
    settings.add_argument("--mask", dest="mask_image", type=Path, metavar="FILE", help="white is redrawn: inpainting")
    settings.add_argument(
        "--depth", dest="depth_map", type=Path, metavar="FILE", help="depth map, near is white: depth"
    )
    settings.add_argument("--lora", type=Path, metavar="FILE", help="a LoRA for the model: adapters")
    settings.add_argument("--embedding", type=Path, metavar="FILE", help="a learned word for the model: adapters")
    settings.add_argument("--device", metavar="NAME", help="cpu, cuda or mps (default: the fastest of this machine)")
    output = parser.add_argument_group("output")
    output.add_argument("-o", "--output", type=Path, metavar="FILE", help="PNG, JPEG or WebP (default: NAME.png)")
    output.add_argument("--overwrite", action="store_true", help="replace existing files")


def app(parser: Parser) -> None:
    """Show the demos as a web page, which this machine serves.

    Needs Gradio: pip install "minisd[app]". Other machines reach the page only with --host.
    """
    page = parser.add_argument_group("the page")
    page.add_argument("--model", help="name, hub id, folder or file, for all demos of its task (default: embedded)")
    page.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 lets other machines in")
    page.add_argument("--port", type=whole, default=7860, metavar="N", help="0 takes any free one")
    page.add_argument("--device", metavar="NAME", help="cpu, cuda or mps (default: the fastest of this machine)")
    publish = parser.add_argument_group("a page to publish")
    publish.add_argument("--export", type=Path, metavar="FOLDER", help="only write what a Hugging Face Space needs")
    publish.add_argument("--overwrite", action="store_true", help="replace the page in the folder")
