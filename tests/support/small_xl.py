"""SDXL in small, of the reference: base, inpainting model and refiner with random weights in official layouts."""

from pathlib import Path
from typing import Any

from support.small import randomise, unet_arguments, write_tokenizer

WIDTH, WIDTH_2, POOLED, SIZE_WIDTH = 64, 128, 40, 8  # of the text encoders, the pooled text, each size


def oracle_xl(folder: Path, kind: str = "base", **unet_others: Any) -> Any:
    """A pipeline "base", "inpainting" or "refiner"; two levels each, the first of the UNet without attention."""
    import diffusers
    import transformers

    vocabulary = write_tokenizer(folder / "vocabulary"), write_tokenizer(folder / "vocabulary_2", sd2=True)
    tokenizers = [transformers.CLIPTokenizer.from_pretrained(path) for path in vocabulary]

    def text(width: int, layers: int, heads: int, activation: str, projection: int) -> Any:
        return transformers.CLIPTextConfig(
            vocab_size=len(tokenizers[0]),
            hidden_size=width,
            intermediate_size=96,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            hidden_act=activation,
            projection_dim=projection,
            bos_token_id=0,
            eos_token_id=2,
        )

    first = transformers.CLIPTextModel(text(WIDTH, 3, 1, "quick_gelu", WIDTH))
    second = transformers.CLIPTextModelWithProjection(text(WIDTH_2, 2, 2, "gelu", POOLED))
    refiner = kind == "refiner"
    unet = diffusers.UNet2DConditionModel(
        **{**unet_arguments("pc"), "norm_num_groups": 32},
        block_out_channels=(64, 128),
        attention_head_dim=(1, 2),
        cross_attention_dim=WIDTH_2 if refiner else WIDTH + WIDTH_2,
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        layers_per_block=1,
        addition_embed_type="text_time",
        addition_time_embed_dim=SIZE_WIDTH,
        projection_class_embeddings_input_dim=POOLED + (5 if refiner else 6) * SIZE_WIDTH,
        in_channels=9 if kind == "inpainting" else 4,
        **unet_others,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        sample_size=32,
        scaling_factor=0.13025,
        force_upcast=True,
    )
    names = {"base": "", "inpainting": "Inpaint", "refiner": "Img2Img"}
    pipeline = getattr(diffusers, f"StableDiffusionXL{names[kind]}Pipeline")(
        vae=randomise(vae, 2),
        text_encoder=None if refiner else randomise(first, 1),
        text_encoder_2=randomise(second, 4),
        tokenizer=None if refiner else tokenizers[0],
        tokenizer_2=tokenizers[1],
        unet=randomise(unet, 3),
        scheduler=diffusers.EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            timestep_spacing="leading",
            steps_offset=1,
        ),
        force_zeros_for_empty_prompt=not refiner,
        add_watermarker=False,
        **({"requires_aesthetics_score": True} if refiner else {}),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
