"""The flags of decoding."""

import math
from dataclasses import dataclass

from command_line.errors import reject
from command_line.flags import check_least, flag, unescaped

# Their tables lie in modules that import torch; a test compares each tuple with its table's keys.
GENERATION_STRATEGIES = ("autoregressive", "self_speculative")
STREAMERS = ("none", "standard", "speculative")
NO_STOP_WORDS = "none"


@dataclass
class GenerationArguments:
    """How tokens are generated."""

    generation_strategy: str = flag("autoregressive", "the decoder", GENERATION_STRATEGIES)
    max_steps: int = flag(512, "most tokens to generate per prompt")
    exit_layer: int = flag(
        -1,
        "number of first layers of the original model that draft (--drafter early_exit) or decode "
        "(autoregressive); -1: none",
    )
    num_speculations: int = flag(-1, "self_speculative: most tokens drafted per round; -1: none")
    sample: bool = flag(True, "sample; false: greedy")
    temperature: float = flag(0.6, "sampling temperature, above 0")
    top_k: int = flag(0, "sample from the k likeliest tokens; 0: from all")
    top_p: float = flag(0.9, "sample from the smallest set of tokens with this mass, in (0, 1]")
    no_repeat_ngram_size: int | None = flag(
        None, "let no n-gram of this size occur twice in prompt and output"
    )
    stop_words: list[str] | None = flag(
        None,
        r"texts that end the output, with \n, \t and \\ as escapes; none: no text does "
        "(default: the data set's own)",
    )
    stop_token_ids: list[int] = flag([], "token ids that end the output, besides the model's own")
    seed: int = flag(42, "seed of sampling, of the examples' order and of few-shot examples")

    def check(self) -> None:
        check_least(self, max_steps=1, no_repeat_ngram_size=1)
        if self.exit_layer != -1 and self.exit_layer < 1:
            reject("exit_layer", self.exit_layer, "must be 1 to L - 1, or -1 for none")
        if self.speculates and self.num_speculations < 1:
            reject("num_speculations", self.num_speculations, "self_speculative needs at least 1")
        if self.sample:
            self._check_sampling()
        self._check_stop_words(self.stop_words or [])
        if any(token_id < 0 for token_id in self.stop_token_ids):
            reject("stop_token_ids", min(self.stop_token_ids), "must be token ids, 0 or more")

    def chosen_stop_words(self) -> tuple[str, ...] | None:
        """Return the words of `--stop_words`, unescaped; None without the flag."""
        if self.stop_words is None:
            return None
        return tuple(unescaped(word) for word in self.stop_words if word != NO_STOP_WORDS)

    def _check_stop_words(self, words: list[str]) -> None:
        if "" in words:
            reject("stop_words", "''", "must not be empty")
        if NO_STOP_WORDS in words and len(words) > 1:
            reject("stop_words", " ".join(words), f"{NO_STOP_WORDS} must be the only word")

    @property
    def speculates(self) -> bool:
        """Whether a drafter proposes tokens."""
        return self.generation_strategy == "self_speculative"

    def _check_sampling(self) -> None:
        # Logits divided by a smaller number would leave float32's range.
        if not 1e-6 <= self.temperature < math.inf:
            allowed = "must be 1e-6 or more; --sample false is greedy"
            reject("temperature", self.temperature, allowed)
        if self.top_k < 0:
            reject("top_k", self.top_k, "must be 0 (off) or more")
        if not 0 < self.top_p <= 1:
            reject("top_p", self.top_p, "must be in (0, 1]")
