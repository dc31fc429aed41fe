"""The real hub client against a local server; it reads the environment at import: hence subprocesses."""

import errno
import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub.utils import WeakFileLock
from support.local_hub import API, LocalHub

from minisd.errors import OutputError

ROOT = Path(__file__).resolve().parents[3]
ALWAYS = float("inf")
UNET = "unet/diffusion_pytorch_model.safetensors"
TOKEN = "hf_secretsecretsecret"

# The child runs the calls and reports; packages are stubs, so that torch is not imported; sleeps are only counted.
CHILD = """
import json, socket, sys, time, types, warnings
for name in ("minisd", "weights_loader"):
    package = sys.modules[name] = types.ModuleType(name)
    package.__path__ = [sys.argv[1] + "/" + name]
job = json.load(sys.stdin)
sleeps, sockets = [], 0
time.sleep = sleeps.append
def banned(*args, **kwargs):
    global sockets
    sockets += 1
    raise OSError("no sockets here")
if job["ban"]:
    socket.socket.connect = socket.socket.connect_ex = socket.create_connection = socket.getaddrinfo = banned
from huggingface_hub import constants
constants.DOWNLOAD_CHUNK_SIZE = 1000
from weights_loader.hub import speed
speed.WINDOW = job["window"]
from weights_loader.sources import resolve
results = []
for source, options in job["calls"]:
    for path, text in options.pop("write", {}).items():
        open(path, "w").write(text)
    read = options.pop("read", None)
    start = time.monotonic()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = {"folder": str(resolve(source, **options)), "error": None}
        except Exception as error:
            result = {"folder": None, "error": type(error).__name__, "message": str(error),
                      "exit": getattr(error, "exit_code", None)}
    result["read"] = read and open(read).read()
    result["warnings"] = [str(w.message) for w in caught]
    result["seconds"] = time.monotonic() - start
    results.append(result)
assert "torch" not in sys.modules
print(json.dumps({"results": results, "sleeps": sleeps, "sockets": sockets}))
"""


def run(hub: LocalHub, home: Path, *calls: tuple, ban: bool = False, window: float = 30, **environment: str) -> dict:
    """Resolve in a fresh process with the cache in `home`; calls are (source, options).

    Options of the test itself: write, {path: text} before the call; read, the path of a file to report after it.
    """
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))}
    env = clean | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "*",
        **environment,
    }
    calls = tuple((c, {}) if isinstance(c, str) else c for c in calls)
    job = json.dumps({"calls": calls, "ban": ban, "window": window})
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(ROOT)],
        input=job,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]) | {"stderr": done.stderr, "stdout": done.stdout}


def weights(seed: str) -> bytes:
    return random.Random(seed).randbytes(5000)


def model() -> dict[str, bytes]:
    """A repository as Stable Diffusion 1.5 has it, with all that must not be downloaded."""
    index = {
        "_class_name": "StableDiffusionPipeline",
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    files = {"model_index.json": json.dumps(index).encode(), "README.md": b"read me"}
    for name in SMALL - {"model_index.json"} | {"safety_checker/config.json"}:
        files[name] = b'{"of": "%s"}' % name.encode()
    half = {name.replace(".safetensors", ".fp16.safetensors") for name in PLAIN}
    return files | {name: weights(name) for name in PLAIN | half | DECOYS}


SMALL = {
    *("model_index.json", "text_encoder/config.json", "unet/config.json", "vae/config.json"),
    *("scheduler/scheduler_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt"),
    "tokenizer/special_tokens_map.json",
}
PLAIN = {UNET, "text_encoder/model.safetensors", "vae/diffusion_pytorch_model.safetensors"}
DECOYS = {
    *("unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.non_ema.safetensors"),
    *("unet/diffusion_flax_model.msgpack", "unet/openvino_model.bin", "unet/model.onnx"),
    *("text_encoder/pytorch_model.bin", "text_encoder/flax_model.msgpack", "text_encoder/openvino_model.bin"),
    *("safety_checker/model.safetensors", "vae_decoder/model.onnx", "sd.ckpt", "sd.safetensors"),
}


def tree(folder: str | Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def leftovers(home: Path) -> list[Path]:
    return [p for p in home.rglob("*") if p.name.endswith((".incomplete", ".tmp"))]


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    with LocalHub() as hub:
        yield hub


def test_only_needed_files_of_one_commit_and_nothing_twice(hub: LocalHub, tmp_path: Path) -> None:
    hub.repos["me/model"] = model()
    out = run(hub, tmp_path, ("me/model", {"progress": False}), "me/model")
    first, second = out["results"]
    assert first["error"] is None
    assert first["warnings"] == []
    assert tree(first["folder"]) == {name: hub.repos["me/model"][name] for name in SMALL | PLAIN}
    assert sorted(hub.requests("me/model")) == sorted(SMALL | PLAIN)
    assert Path(first["folder"]).name == hub.commit("me/model")
    assert second["folder"] == first["folder"]
    assert out["stderr"] == ""
    assert out["stdout"].count("\n") == 1  # nothing but this test's own report
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("folders", [("", ""), ("unet/", "scheduler/")])
def test_pixel_models_flat_or_in_folders(hub: LocalHub, tmp_path: Path, folders: tuple[str, str]) -> None:
    unet, scheduler = folders
    index = {
        "_class_name": "DDPMPipeline",
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    needed = {
        "model_index.json": json.dumps(index).encode(),
        f"{unet}config.json": b"{}",
        f"{unet}diffusion_pytorch_model.bin": weights("pixels"),
        f"{scheduler}scheduler_config.json": b"{}",
    }
    hub.repos["me/pixels"] = needed | {"README.md": b"read me", "samples/image.png": b"an image"}
    out = run(hub, tmp_path, "me/pixels", ("me/pixels", {"offline": True}))
    first, again = out["results"]
    assert (first["error"], again["error"]) == (None, None)
    assert tree(first["folder"]) == needed
    assert again["folder"] == first["folder"]
    hub.repos["me/parts"] = {name: content for name, content in needed.items() if "scheduler" not in name}
    failed = run(hub, tmp_path, "me/parts")["results"][0]
    assert failed["error"] == "HubNotFound"
    assert f"lacks {scheduler}scheduler_config.json" in failed["message"]


def test_progress_bars(hub: LocalHub, tmp_path: Path) -> None:
    hub.repos["me/model"] = model()
    shown, hidden = (
        run(hub, tmp_path / str(progress), ("me/model", {"progress": progress}), TQDM_POSITION="-1")["stderr"]
        for progress in (True, False)
    )  # TQDM_POSITION: bars although there is no terminal
    assert "diffusion_pytorch_model" in shown
    assert hidden == ""


def test_variants_formats_and_shards(hub: LocalHub, tmp_path: Path) -> None:
    hub.repos["me/model"] = full = model()
    hub.repos["me/bin"] = {n: b for n, b in full.items() if not n.endswith(".safetensors")} | {
        "vae/diffusion_pytorch_model.bin": weights("vae.bin")
    }
    parts = [f"unet/diffusion_pytorch_model.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = {"metadata": {}, "weight_map": {"a": parts[0][5:], "b": parts[1][5:], "c": parts[0][5:]}}
    index_name = "unet/diffusion_pytorch_model.safetensors.index.fp16.json"
    hub.repos["me/sharded"] = {n: b for n, b in full.items() if "unet/diffusion" not in n} | {
        index_name: json.dumps(index).encode(),
        **{part: weights(part) for part in parts},
    }
    hub.repos["me/shardless"] = {n: b for n, b in hub.repos["me/sharded"].items() if n != parts[1]}
    escaping = index | {"weight_map": {"a": "../../../../stolen.safetensors"}}
    hub.repos["me/escaping"] = hub.repos["me/sharded"] | {index_name: json.dumps(escaping).encode()}
    hub.repos["me/flux"] = {"model_index.json": b'{"_class_name": "FluxPipeline", "transformer": ["diffusers", "F"]}'}
    hub.repos["me/single"] = {"sd-v1-4.ckpt": weights("ckpt")}
    hub.repos["me/partless"] = {n: b for n, b in full.items() if n not in ("unet/config.json", "tokenizer/merges.txt")}
    calls = [
        ("me/model", {"variant": "fp16"}),
        ("me/model", {"variant": "non_ema"}),
        ("me/model", {"variant": "bf16"}),
        ("me/bin", {}),
        ("me/sharded", {"variant": "fp16"}),
        ("me/shardless", {"variant": "fp16"}),
        ("me/escaping", {"variant": "fp16"}),
        *((f"me/{name}", {}) for name in ("flux", "single", "partless")),
        ("me/sharded", {"variant": "fp16", "offline": True}),
    ]
    results = run(hub, tmp_path, *calls)["results"]
    half, no_ema, no_variant, binary, sharded, shardless, escaping_, flux, single, partless, again = results
    assert half["folder"] == no_ema["folder"]
    assert set(hub.requests("me/model")) == SMALL | {
        *(name.replace(".safe", ".fp16.safe") for name in PLAIN),  # then those that non_ema has for the unet only
        *(PLAIN - {UNET}),
        UNET.replace(".safe", ".non_ema.safe"),
    }
    assert no_variant["error"] == "InputError"
    assert "'fp16', 'non_ema'" in no_variant["message"]
    bins = {
        "unet/diffusion_pytorch_model.bin",
        "vae/diffusion_pytorch_model.bin",
        "text_encoder/pytorch_model.bin",
    }
    assert set(tree(binary["folder"])) == SMALL | bins
    assert set(tree(sharded["folder"])) >= {index_name, *parts}
    assert again["folder"] == sharded["folder"]
    assert shardless["error"] == "HubNotFound"
    assert parts[1] in shardless["message"]
    assert escaping_["error"] == "UnsafeFileError"
    assert not any("stolen" in file for *_, file, _ in hub.log)
    assert (flux["error"], hub.requests("me/flux")) == ("MismatchError", ["model_index.json"])
    assert "FluxPipeline" in flux["message"]
    assert single["error"] == "HubNotFound"
    assert "hf download me/single sd-v1-4.ckpt" in single["message"]
    assert partless["error"] == "HubNotFound"
    assert "unet/config.json" in partless["message"]
    assert "tokenizer/merges.txt" in partless["message"]


def test_offline_opens_no_socket_and_lists_what_is_missing(hub: LocalHub, tmp_path: Path) -> None:
    hub.repos["me/model"] = model()
    (done,) = run(hub, tmp_path, "me/model")["results"]
    calls = ["me/model", ("me/model", {"revision": hub.commit("me/model")}), "me/other"]
    calls += [("me/model", {"variant": "fp16"}), ("me/model", {"revision": "typo"}), ("sd15", {})]
    out = run(hub, tmp_path, *calls, ban=True, HF_HUB_OFFLINE="1")
    explicit = run(hub, tmp_path, *((s, {"offline": True}) for s in ("me/model", "me/other")), ban=True)
    assert out["sockets"] == explicit["sockets"] == 0
    assert [r["folder"] for r in out["results"][:2]] == [done["folder"]] * 2
    assert [r["error"] for r in out["results"][2:]] == ["HubOffline"] * 4
    assert [r["error"] for r in explicit["results"]] == [None, "HubOffline"]
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in out["results"][3]["message"]
    (Path(done["folder"]) / UNET).unlink()
    (Path(done["folder"]) / "tokenizer/merges.txt").resolve().unlink()  # leaves a dangling link
    (partial,) = run(hub, tmp_path, ("me/model", {"offline": True}), ban=True)["results"]
    assert partial["error"] == "HubOffline"
    assert UNET in partial["message"]
    assert "tokenizer/merges.txt" in partial["message"]
    assert "vae/" not in partial["message"]
    (repaired,) = run(hub, tmp_path, "me/model")["results"]
    assert tree(repaired["folder"]) == {name: hub.repos["me/model"][name] for name in SMALL | PLAIN}
    # and the proof that the ban would have caught a call
    assert run(hub, tmp_path, ("me/other", {"offline": False}), ban=True)["sockets"] > 0


def test_cache_filled_by_another_tool(hub: LocalHub, tmp_path: Path) -> None:
    """A snapshot without minisd's record: offline it is used as it is, checked by the names of its blobs."""
    hub.repos["me/model"] = model()
    (done,) = run(hub, tmp_path, "me/model")["results"]
    repository = Path(done["folder"]).parents[1]
    (record,) = (repository / "minisd").iterdir()
    record.unlink()
    offline = ("me/model", {"offline": True})
    assert run(hub, tmp_path, offline)["results"][0]["folder"] == done["folder"]
    record.unlink()
    flip(Path(done["folder"]) / UNET)
    assert run(hub, tmp_path, offline)["results"][0]["error"] == "IntegrityError"


def flip(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def test_damaged_cache_is_found_and_repaired(hub: LocalHub, tmp_path: Path) -> None:
    hub.repos["me/model"] = full = model()
    (done,) = run(hub, tmp_path, "me/model")["results"]
    text_encoder = "text_encoder/model.safetensors"
    flip(Path(done["folder"]) / UNET)
    (Path(done["folder"]) / text_encoder).write_bytes(b"0123456789")
    flip(Path(done["folder"]) / "tokenizer/vocab.json")
    hub.log.clear()
    out = run(hub, tmp_path, ("me/model", {"offline": True}), "me/model", "me/model")
    offline, online, again = out["results"]
    assert offline["error"] == "IntegrityError"
    assert sorted(hub.requests("me/model")) == [text_encoder, "tokenizer/vocab.json", UNET]
    assert len(online["warnings"]) == 3
    assert again["warnings"] == []
    assert tree(again["folder"]) == {name: full[name] for name in SMALL | PLAIN}


def test_resume_after_a_dropped_connection(hub: LocalHub, tmp_path: Path) -> None:
    for name in ("once", "always", "between"):
        hub.repos[f"me/{name}"] = model()
    hub.fail("me/once", "GET", UNET, "drop")
    hub.fail("me/always", "GET", UNET, "cut", ALWAYS)
    hub.fail("me/between", "GET", UNET, "cut", 2)
    out = run(hub, tmp_path, "me/once", "me/always", "me/between")
    once, always, between = out["results"]
    assert hashlib.sha256((Path(once["folder"]) / UNET).read_bytes()).digest() == hashlib.sha256(weights(UNET)).digest()
    assert always["error"] == "HubUnreachable"
    assert "kept" in always["message"]
    assert between["error"] is None
    ranges = [r for method, repo, file, r in hub.log if (method, repo, file) == ("GET", "me/once", UNET)]
    assert ranges == ["", "bytes=2000-"]  # it goes on where it was: 2 of the 2.5 chunks that came were stored
    hub.faults.clear()
    hub.log.clear()
    (later,) = run(hub, tmp_path, "me/always")["results"]
    assert tree(later["folder"]) == {name: hub.repos["me/always"][name] for name in SMALL | PLAIN}
    assert UNET in hub.requests("me/always")
    assert "text_encoder/model.safetensors" not in hub.requests("me/always")  # what had come before was kept
    assert leftovers(tmp_path) == []


BODIES = {"flip": "IntegrityError", "short": "IntegrityError", "html": "IntegrityError"}
BODIES_WANTED = [("unet", UNET), ("small", "tokenizer/vocab.json")]


def test_wrong_bodies_are_not_kept(hub: LocalHub, tmp_path: Path) -> None:
    cases = [(f"me/{kind}-{where}", kind, file) for kind in BODIES for where, file in BODIES_WANTED]
    for repo, kind, file in cases:
        hub.repos[repo] = model() | {file: weights(repo) if file == UNET else repo.encode() * 3}
        hub.fail(repo, "GET", file, kind)
    out = run(hub, tmp_path, *(repo for repo, *_ in cases for _ in "ab"))
    for (repo, kind, file), bad, good in zip(cases, out["results"][::2], out["results"][1::2], strict=True):
        assert bad["error"] == BODIES[kind], repo
        assert bad["exit"] == 3
        assert file in bad["message"]
        assert tree(good["folder"])[file] == hub.repos[repo][file]
    assert leftovers(tmp_path) == []


GATED = {"X_Error_Code": "GatedRepo"}
REFUSALS = {  # name: (method, file, kind, times, headers), (error, words in the message)
    "gated": (("HEAD", "unet/config.json", 403, ALWAYS, GATED), ("HubGated", "accept its terms on http")),
    "gated-list": (("GET", API, 403, ALWAYS, GATED), ("HubGated", "hf auth login")),
    "forbidden": (("GET", API, 403, ALWAYS, {}), ("HubGated", "HTTP 403")),
    "bad-token": (
        ("GET", API, 401, ALWAYS, {"X_Error_Message": "Invalid credentials in Authorization header"}),
        ("HubGated", "HTTP 401"),
    ),
    "private": (
        ("GET", API, 401, ALWAYS, {"X_Error_Code": "RepoNotFound"}),
        ("HubNotFound", "private or gated"),
    ),
    "missing-404": (
        ("GET", API, 404, ALWAYS, {"X_Error_Code": "RepoNotFound"}),
        ("HubNotFound", "hf auth login"),
    ),
    "bare-404": (("GET", API, 404, ALWAYS, {}), ("HubNotFound", "HTTP 404")),
    "file-gone": (
        ("HEAD", "vae/config.json", 404, ALWAYS, {"X_Error_Code": "EntryNotFound"}),
        ("HubNotFound", "no vae/config.json"),
    ),
    "limited": (("GET", API, 429, ALWAYS, {"Retry_After": "7"}), ("HubRateLimited", "wait 7 s")),
    "limited-long": (("GET", API, 429, ALWAYS, {"Retry_After": "4000"}), ("HubRateLimited", "wait 4000 s")),
    "limited-once": (("GET", API, 429, 1, {"Retry_After": "9"}), (None, "")),
    "broken": (("GET", API, 500, ALWAYS, {}), ("HubUnreachable", "HTTP 500")),
    "broken-head": (("HEAD", UNET, 503, ALWAYS, {}), ("HubUnreachable", "HTTP 503")),
    "broken-get": (("GET", UNET, 502, ALWAYS, {}), ("HubUnreachable", "HTTP 502")),
    "broken-once": (("GET", API, 503, 2, {}), (None, "")),
    "broken-get-once": (("GET", UNET, 504, 1, {}), (None, "")),
    "portal": (("GET", API, "html", ALWAYS, {}), ("HubUnreachable", "network")),
    "portal-head": (("HEAD", UNET, "html", ALWAYS, {}), ("HubUnreachable", "network")),
    "odd-answer": (("GET", API, "odd", ALWAYS, {}), ("HubUnreachable", "network")),
    "redirects": (("GET", API, "loop", ALWAYS, {}), ("HubUnreachable", "TooManyRedirects")),
    "dropped-list": (("GET", API, "drop", 1, {}), (None, "")),
}


def test_refusals_and_failures(hub: LocalHub, tmp_path: Path) -> None:
    for name, ((method, file, kind, times, headers), _) in REFUSALS.items():
        hub.repos[f"me/{name}"] = model()
        hub.fail(f"me/{name}", method, file, kind, times, **headers)
    environment = {"HF_TOKEN": TOKEN, "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0"}
    calls = [(f"me/{name}", {"progress": False}) for name in REFUSALS]
    out = run(hub, tmp_path, *calls, **environment)
    wrong = {}
    for (name, (_, (error, words))), result in zip(REFUSALS.items(), out["results"], strict=True):
        message = result.get("message", "")
        if result["error"] != error or words not in message or (error and result["exit"] != 4):
            wrong[name] = result
        assert "\n" not in message
        assert message == "" or f"me/{name}" in message
    assert wrong == {}
    assert TOKEN not in json.dumps(out)
    assert 9.0 in out["sleeps"]
    assert max(out["sleeps"]) <= 30  # a hub that asks for 4000 seconds is not waited for


def test_unknown_names(hub: LocalHub, tmp_path: Path) -> None:
    hub.repos["me/model"] = model()
    calls = ["CompVis/stable-diffusion-v1-5", ("me/model", {"revision": "v2"}), "a--b/c..d"]
    typo, revision, invalid = run(hub, tmp_path, *calls)["results"]
    assert typo["error"] == "HubNotFound"
    assert "did you mean CompVis/stable-diffusion-v1-4" in typo["message"]
    assert revision["error"] == "HubNotFound"
    assert "'v2'" in revision["message"]
    assert "known models" not in revision["message"]
    assert invalid["error"] == "InputError"


def test_slow_or_absent_hub_takes_bounded_time(hub: LocalHub, tmp_path: Path) -> None:
    hub.repos["me/hang"] = model()
    hub.fail("me/hang", "GET", API, "hang", ALWAYS)
    (hang,) = run(hub, tmp_path, "me/hang", HF_HUB_ETAG_TIMEOUT="1")["results"]
    (absent,) = run(hub, tmp_path, "me/hang", HF_ENDPOINT="http://127.0.0.1:9")["results"]
    assert hang["error"] == absent["error"] == "HubUnreachable"
    assert hang["seconds"] < 60  # three attempts of one second, on a busy machine
    assert len(hub.log) == 3


def test_cache_serves_when_the_hub_does_not(hub: LocalHub, tmp_path: Path) -> None:
    hub.repos["me/model"] = model()
    (done,) = run(hub, tmp_path, "me/model")["results"]
    del hub.repos["me/model"]
    (gone,) = run(hub, tmp_path, "me/model")["results"]
    (away,) = run(hub, tmp_path, "me/model", HF_ENDPOINT="http://127.0.0.1:9")["results"]
    assert gone["folder"] == away["folder"] == done["folder"]
    assert "missing, private or gated" in gone["warnings"][0]
    assert "cache is used" in away["warnings"][0]


def test_known_names_try_current_ids_in_order(hub: LocalHub, tmp_path: Path) -> None:
    new, second, old = (
        f"{owner}/stable-diffusion-v1-5" for owner in ("stable-diffusion-v1-5", "sd-legacy", "runwayml")
    )
    hub.repos[second] = model()
    hub.repos[old] = model() | {UNET: weights("an intruder who took the free name")}
    fallback, moved = run(hub, tmp_path / "a", "sd15", old)["results"]
    assert f"models--{second.replace('/', '--')}" in fallback["folder"]
    assert moved["folder"] == fallback["folder"]
    assert "removed from the hub" in moved["warnings"][0]
    assert not any(repo == old for _, repo, *_ in hub.log)  # a freed id may have been taken over
    hub.repos[new] = model()
    (first,) = run(hub, tmp_path / "b", "sd15")["results"]
    assert f"models--{new.replace('/', '--')}" in first["folder"]
    # a copy from the days when the old id was there is used, and nothing is downloaded
    cache = tmp_path / "c" / "hub"
    cache.mkdir(parents=True)
    renamed = cache / f"models--{old.replace('/', '--')}"
    (tmp_path / "b" / "hub" / f"models--{new.replace('/', '--')}").rename(renamed)
    hub.log.clear()
    (kept,) = run(hub, tmp_path / "c", "sd15")["results"]
    assert kept["folder"].startswith(str(renamed))
    assert hub.log == []


def test_unwritable_cache(hub: LocalHub, tmp_path: Path) -> None:
    hub.repos["me/model"] = model()
    (tmp_path / "file").write_text("where a folder should be")
    (result,) = run(hub, tmp_path / "file", "me/model")["results"]
    assert result["error"] == "OutputError"
    assert "HF_HOME" in result["message"]


def test_what_the_system_says() -> None:
    """Faults that root does not meet, or that the disk will not give on demand."""
    from weights_loader.hub.errors import translate

    for code, word in (
        (errno.ENOSPC, "make room"),
        (errno.EFBIG, "make room"),
        (errno.EACCES, "HF_HOME"),
        (errno.EROFS, "HF_HOME"),
    ):
        error = translate(OSError(code, "by the system"), "me/model", "unet/config.json")
        assert type(error) is OutputError
        assert word in str(error)
    assert translate(MemoryError(), "me/model", "unet/config.json") is None


def test_killed_download_leaves_nothing_for_ever(hub: LocalHub, tmp_path: Path) -> None:
    hub.repos["me/model"] = model()
    blobs = tmp_path / "hub" / "models--me--model" / "blobs"
    blobs.mkdir(parents=True)
    old, running = (blobs / f"{digit * 64}.01234567.incomplete" for digit in "10")
    for path in (old, running):
        path.write_bytes(b"half a file")
    locks = tmp_path / "hub" / ".locks" / "models--me--model"
    locks.mkdir(parents=True)
    with WeakFileLock(locks / f"{'0' * 64}.lock"):  # as the client does while it downloads
        assert run(hub, tmp_path, "me/model")["results"][0]["error"] is None
        assert leftovers(tmp_path) == [running]
        os.utime(running, (1, 1))
        assert run(hub, tmp_path, "me/model")["results"][0]["error"] is None  # for an hour nothing was written
        assert leftovers(tmp_path) == []
    running.write_bytes(b"half a file")
    assert run(hub, tmp_path, "me/model")["results"][0]["error"] is None  # nothing is left to download
    assert leftovers(tmp_path) == []


def test_a_server_that_only_trickles_is_given_up(hub: LocalHub, tmp_path: Path) -> None:
    hub.repos["me/model"] = model()
    hub.fail("me/model", "GET", UNET, "slow")
    (slow,) = run(hub, tmp_path, "me/model", window=0.5)["results"]
    assert (slow["error"], slow["exit"]) == ("HubUnreachable", 4)
    assert "is too slow for" in slow["message"]
    assert hub.requests("me/model").count(UNET) == 1
    assert run(hub, tmp_path, "me/model", window=0.5)["results"][0]["error"] is None


def test_a_mirror_that_answers_for_another_commit(hub: LocalHub, tmp_path: Path) -> None:
    hub.repos["me/model"] = model()
    for method in ("HEAD", "GET"):
        hub.fail("me/model", method, "unet/config.json", "other")
    (other,) = run(hub, tmp_path, "me/model")["results"]
    assert other["error"] == "HubUnreachable"
    assert "answered for another commit of me/model" in other["message"]


RECORDS: list[object] = [
    None, [], "x", {"files": [], "checked": {}}, {"files": None, "checked": None}, {"files": {"a": 1}, "checked": {}},
    {"files": {"unet/config.json": ["1", 2]}, "checked": {}}, {"files": {}, "checked": {"unet/config.json": 3}},
]  # fmt: skip


def test_a_record_that_was_changed_is_made_anew(hub: LocalHub, tmp_path: Path) -> None:
    """And a reference that is no text; online as offline."""
    hub.repos["me/model"] = model()
    folder = Path(run(hub, tmp_path, "me/model")["results"][0]["folder"])
    record = folder.parents[1] / "minisd" / f"{folder.name}.json"
    good = record.read_bytes()
    calls: list[tuple[str, dict]] = []
    for value in RECORDS:
        calls += [("me/model", {"offline": True, "write": {str(record): json.dumps(value)}})]
        calls += [("me/model", {"read": str(record)})]
    results = run(hub, tmp_path, *calls)["results"]
    for value, offline, online in zip(RECORDS, results[::2], results[1::2], strict=True):
        assert (offline["error"], online["error"]) == (None, None), value
        assert json.loads(online["read"])["files"] == json.loads(good)["files"]
    (folder.parents[1] / "refs" / "main").write_bytes(b"\xff\xfe")
    (offline,) = run(hub, tmp_path, ("me/model", {"offline": True}))["results"]
    assert offline["error"] == "HubOffline"


def test_full_disk_is_seen_before_the_download(hub: LocalHub, tmp_path: Path) -> None:
    hub.repos["me/model"] = model()
    hub.announced_size[UNET] = 10**18
    (result,) = run(hub, tmp_path, "me/model")["results"]
    assert result["error"] == "OutputError"
    assert "1,000,000,000,0" in result["message"]
    assert UNET not in hub.requests("me/model")


def test_two_processes_at_once(hub: LocalHub, tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    hub.repos["me/model"] = model()
    with ThreadPoolExecutor(2) as pool:
        outs = list(pool.map(lambda _: run(hub, tmp_path, "me/model"), range(2)))
    for out in outs:
        assert out["results"][0]["error"] is None
        assert tree(out["results"][0]["folder"]) == {n: hub.repos["me/model"][n] for n in SMALL | PLAIN}
