"""Measurements: what criteria read, measured once for all plans of the same calibration texts."""

from collections.abc import Callable, Collection
from typing import Any

from torch import Tensor

from command_line.errors import UsageError, is_out_of_memory
from processes.ranks import ALONE, Ranks
from pruning.perplexity_search import PerplexitySearch
from pruning.states import States, measure_states
from pruning.weights import magnitudes, taylor
from self_speculation.model_protocol import Llama

Texts = list[Tensor]


class Measurements:
    """Measures a whole model on calibration texts, (1, T) each, when a criterion asks.

    `calibration` returns the prompts; it is called once at most. `continued` returns the prompts
    with the model's continuations, which then are the texts. `needed` names the criteria that will
    ask: with taylor among them, one pass over the texts serves all criteria that need no search.
    The results are equal in all processes.
    """

    def __init__(
        self,
        model: Llama,
        calibration: Callable[[], Texts],
        ranks: Ranks = ALONE,
        needed: Collection[str] = (),
        continued: Callable[[Texts], Texts] | None = None,
    ) -> None:
        self.model, self.ranks = model, ranks
        self._calibration, self._continued = calibration, continued
        self._needed = needed
        self._found: dict[str, Any] = {}
        self.layers = model.config.num_hidden_layers

    @property
    def prompts(self) -> Texts:
        """The texts: prompts, with the model's continuations if there are any."""
        continued = self._continued or (lambda prompts: prompts)
        return self._once("texts", lambda: continued(self._own_prompts))

    @property
    def facts(self) -> dict[str, Any]:
        """Counts of the texts and their tokens, for the log of a plan."""
        tokens = _tokens(self.prompts)
        facts = {"prompts": len(self.prompts), "tokens": tokens}
        if self._continued:
            facts["generated_tokens"] = tokens - _tokens(self._own_prompts)
        return facts

    @property
    def states(self) -> States:
        """Angular distances and block influences."""
        return self._once("states", self._measure_states)

    @property
    def taylor(self) -> list[float]:
        """The Taylor importance of each layer."""
        self._check_predicting("taylor")
        return self._once("taylor", lambda: self._of_leader(lambda: self._gradients[0]))

    @property
    def magnitudes(self) -> list[float]:
        """The magnitude of each layer."""
        return self._once("magnitudes", lambda: self._of_leader(lambda: magnitudes(self.model)))

    def removals(self, count: int) -> dict[str, Any]:
        """Return the result of a `PerplexitySearch` that removes so many layers."""
        self._check_predicting("perplexity")
        return self._of_leader(lambda: self._search.result(count))

    @property
    def _own_prompts(self) -> Texts:
        return self._once("prompts", self._calibration)

    @property
    def _gradients(self) -> tuple[list[float], States]:
        self._check_predicting("taylor")
        return self._once("gradients", lambda: taylor(self.model, self.prompts))

    @property
    def _search(self) -> PerplexitySearch:
        return self._once("search", lambda: PerplexitySearch(self.model, self.prompts))

    def _measure_states(self) -> States:
        # Several processes share the passes, so that one pass less would take longer.
        if "taylor" in self._needed and self.ranks.count == 1:
            try:
                return self._gradients[1]
            except Exception as error:
                if not isinstance(error, UsageError) and not is_out_of_memory(error):
                    raise
            # Gradients need more memory than states; only the plan that needs them is to fail.
        return measure_states(self.model, self.prompts, self.ranks)

    def _once(self, name: str, measure: Callable[[], Any]) -> Any:
        """Return what was measured under the name, or measure it.

        `cached_property` holds a lock of its class meanwhile (Python 3.11): processes that run as
        threads, as in tests, would wait for each other forever.
        """
        if name not in self._found:
            self._found[name] = measure()
        return self._found[name]

    def _check_predicting(self, method: str) -> None:
        """Refuse texts of which none has a token that another one predicts."""
        if all(text.shape[1] < 2 for text in self.prompts):
            raise UsageError(
                f"--prune_method {method}: no calibration text has more than one token; calibrate "
                "on other rows, or with --calibration_text generated"
            )

    def _of_leader(self, measure: Callable[[], Any]) -> Any:
        """Return what the leading process measures, which must not depend on the others."""
        return self.ranks.first(measure() if self.ranks.leads else None)


def _tokens(texts: Texts) -> int:
    return sum(text.shape[1] for text in texts)
