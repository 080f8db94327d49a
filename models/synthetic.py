"""Make up weights in the shape of a public model, for work on speed without the model itself.

The tokens mean nothing. Speed and memory are those of the shape, and the acceptance is chosen.
"""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from arguments.model import SYNTHETIC
from command_line.errors import reject

DEFAULT_ACCEPTANCE = 0.7
NUM_SPECULATIONS = 6  # per round, for the acceptance that is chosen
# The keys of --model_args that do not concern files.
MODEL_ARGS = ("attn_implementation", "dtype")

_RECIPE = 1  # raise it when the weights of a name change
_SEED = 0
_CALIBRATION_TOKENS = 64
_QUERY_SCALE = 4.0
_LLAMA3_ROPE = {"rope_type": "default", "rope_theta": 500000.0}
_LLAMA2 = {
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
_LLAMA3 = {
    "vocab_size": 128256,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
}
# From the config.json of each public model.
SHAPES: dict[str, dict[str, Any]] = {
    "llama3.2-1b": _LLAMA3
    | {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "head_dim": 64,
        "max_position_embeddings": 131072,
        "rope_parameters": _LLAMA3_ROPE
        | {
            "rope_type": "llama3",
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
        },
        "tie_word_embeddings": True,
    },
    "llama2-7b": _LLAMA2
    | {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
    "llama3-8b": _LLAMA3
    | {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 8192,
        "rope_parameters": _LLAMA3_ROPE,
    },
    "llama2-13b": _LLAMA2
    | {
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "num_key_value_heads": 40,
    },
}


@dataclass(frozen=True)
class SyntheticModel:
    """A shape of `SHAPES`, and the acceptance that the weights are made for."""

    shape: str
    acceptance: float = DEFAULT_ACCEPTANCE

    @property
    def config(self) -> LlamaConfig:
        """Return the public model's configuration, without tokens that begin or end a text."""
        values = {"tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": None}
        return LlamaConfig(**values | SHAPES[self.shape])

    @property
    def exit_layer(self) -> int:
        """Return the exit layer at which the acceptance holds: a quarter of the depth."""
        return self.config.num_hidden_layers // 4

    @property
    def fingerprint(self) -> str:
        """Return a hash of all that defines the weights, except device and dtype."""
        defining = asdict(self) | SHAPES[self.shape] | {"seed": _SEED, "recipe": _RECIPE}
        text = json.dumps(defining, sort_keys=True)
        return f"synthetic {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def is_synthetic(name: str) -> bool:
    """Return whether `--model` names a synthetic model."""
    return name.startswith(SYNTHETIC)


def find_synthetic(name: str, model_args: dict[str, Any]) -> SyntheticModel:
    """Return the model that synthetic:SHAPE or synthetic:SHAPE:ACCEPTANCE names.

    Raise `UsageError` for another name, and for `--model_args` that concern files.
    """
    shape, separator, text = name.removeprefix(SYNTHETIC).partition(":")
    if shape not in SHAPES:
        reject("model", name, f"must be one of {', '.join(SYNTHETIC + known for known in SHAPES)}")
    acceptance = _number(text) if separator else DEFAULT_ACCEPTANCE
    if not 0 < acceptance < 1:
        reject("model", name, "the acceptance after the second colon must be in (0, 1)")
    for key in model_args:
        if key not in MODEL_ARGS:
            allowed = f"--model {name} is read from no files and takes {', '.join(MODEL_ARGS)} only"
            reject("model_args", f"{key}={model_args[key]}", allowed)
    return SyntheticModel(shape, acceptance)


def make_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer with a token per byte, filled up with tokens that no text encodes to."""
    # GPT-2 writes each byte as a printable character, printable ASCII as itself.
    printable = {ord(symbol): symbol for symbol in pre_tokenizers.ByteLevel.alphabet()}
    others = sorted(set(printable.values()) - set(map(chr, range(256))))
    symbols = [printable[byte] if byte in printable else others.pop(0) for byte in range(256)]
    fillers = [f"Ġ{index}" for index in range(256, vocabulary)]
    tokens = {token: index for index, token in enumerate(symbols + fillers)}
    core = Tokenizer(models.BPE(tokens, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core)


def make_model(
    synthetic: SyntheticModel, device: torch.device, dtype: torch.dtype, attention: str
) -> LlamaForCausalLM:
    """Draw the weights on the device, and fit the late layers to the acceptance.

    Matrices keep states at unit size, so that each layer adds about as much to the residual
    stream, and the embedding next to nothing: no token follows itself. Queries are longer, so that
    attention picks a few tokens; a mean over many would make all states alike, and the output a
    loop.

    The additions of the layers after the exit are scaled until they turn the state by an angle
    theta. A head of random rows maps both states to Gaussian logits with correlation cos(theta);
    theta is the angle at which such logits agree on the likeliest token as often as greedy rounds
    of `NUM_SPECULATIONS` drafts need. Half precision adds rounding, which matters if the
    acceptance is close to 1.
    """
    model = _empty_model(synthetic.config, device, dtype, attention)
    draws = torch.Generator(device).manual_seed(_SEED)
    _draw_weights(model, draws)
    angle = angle_for(match_rate_for(synthetic.acceptance), synthetic.config.vocab_size)
    _turn_late_layers(model, synthetic.exit_layer, angle, draws)
    return model


def match_rate_for(acceptance: float) -> float:
    """Return the rate p at which single tokens match if accepted / drafted is `acceptance`.

    A draft of k tokens is accepted up to the first mismatch: (p + ... + p^k) / k on average.
    """
    powers = range(1, NUM_SPECULATIONS + 1)
    return _bisect(lambda p: sum(p**i for i in powers) / NUM_SPECULATIONS, acceptance, 0, 1)


def angle_for(match_rate: float, vocabulary: int) -> float:
    """Return the angle, in radians, between two states whose random logits agree so often."""
    return _bisect(
        lambda angle: argmax_agreement(math.cos(angle), vocabulary), match_rate, math.pi / 2, 0
    )


def argmax_agreement(correlation: float, vocabulary: int) -> float:
    """Return how often two Gaussian vectors with entries correlated in [0, 1) share their argmax.

    V E[F(x, y)^(V - 1)] over one entry (x, y) of both, where F is the distribution function of
    such a pair: no other entry exceeds it in either vector. V must be a few hundred at least.
    """
    rest = math.sqrt(1 - correlation**2)
    x = torch.linspace(0, 4 + math.sqrt(2 * math.log(vocabulary)), 40, dtype=torch.float64)
    z = torch.linspace(-6, 6, 40, dtype=torch.float64)  # y = correlation x + rest z
    # How far below x the first half of another entry lies, as finely as the second half reacts.
    d = torch.linspace(0, 16, 100, dtype=torch.float64) / max(correlation / rest, 1)
    above_y_XZd = torch.special.ndtr(-(z[:, None] + correlation / rest * d))
    above_XZ = torch.trapezoid(_density(x[:, None, None] - d) * above_y_XZd, d)
    above_XZ += torch.special.ndtr(-x)[:, None]
    largest_XZ = ((vocabulary - 1) * torch.log1p(-above_XZ.clamp(max=1))).exp()
    law_XZ = _density(x)[:, None] * _density(z) * largest_XZ
    return vocabulary * float(torch.trapezoid(torch.trapezoid(law_XZ, z), x))


def _density(x: Tensor) -> Tensor:
    """Return the density of the standard normal distribution."""
    return torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


def _bisect(function: Callable[[float], float], value: float, low: float, high: float) -> float:
    """Return where a function takes the value; it is below at `low` and above at `high`."""
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) < value else (low, middle)
    return (low + high) / 2


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _empty_model(
    config: LlamaConfig, device: torch.device, dtype: torch.dtype, attention: str
) -> LlamaForCausalLM:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    model.to_empty(device=device)
    model.tie_weights()
    # The frequencies are no parameters and were lost with the meta device.
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config).to(device)
    return model


@torch.no_grad()
def _draw_weights(model: LlamaForCausalLM, draws: torch.Generator) -> None:
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.fill_(1)
        else:
            # Uniform with variance 1 / columns: some releases of torch draw half-precision
            # normals without tails.
            bound = math.sqrt(3 / parameter.shape[1])
            parameter.uniform_(-bound, bound, generator=draws)
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.mul_(_QUERY_SCALE)


@torch.no_grad()
def _turn_late_layers(
    model: LlamaForCausalLM, exit_layer: int, angle: float, draws: torch.Generator
) -> None:
    """Scale the additions of the layers after the exit, in a pass over random tokens.

    In many dimensions the additions of independent layers are orthogonal to each other and to the
    exit state: n of them, each tan(angle) / sqrt(n) times as long as the state, turn it by the
    angle.
    """
    late = model.model.layers[exit_layer:]
    share = math.tan(angle) / math.sqrt(len(late))
    exit_norms: list[Tensor] = []

    def scale(layer: LlamaDecoderLayer, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        exit_norms.append(inputs[0].float().norm())
        added = output - inputs[0]
        factor = float(share * exit_norms[0] / added.float().norm())
        for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
            projection.weight.mul_(factor)
        return inputs[0] + factor * added

    hooks = [layer.register_forward_hook(scale) for layer in late]
    ids = torch.randint(
        model.config.vocab_size, (1, _CALIBRATION_TOKENS), generator=draws, device=draws.device
    )
    try:
        model.model(input_ids=ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
