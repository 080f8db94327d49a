"""Tokenizers that put a space before what they encode, and strip one from what they decode."""

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

SPACE = "\u2581"  # how SentencePiece writes a space
_WORDS = (SPACE * 4, f"{SPACE}return", f"{SPACE}def", f"{SPACE}yes", f"{SPACE}END", "Summary")
SPECIAL = ["<unk>", "<s>", "</s>"]


def spaced_tokenizer(kind: str = "llama", adds_end: bool = False) -> PreTrainedTokenizerFast:
    """Return a BPE tokenizer with byte fallback.

    `kind` is llama or mistral, with the parts that the files of Llama 2 and of later Mistrals name,
    or legacy, the class of transformers.
    """
    letters = sorted({SPACE, *map(chr, range(33, 127)), "\n"} | set("".join(_WORDS)))
    vocabulary = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    merges: list[tuple[str, str]] = []
    for word in _WORDS:
        grown = word[0]
        for letter in word[1:]:
            merges.append((grown, letter))
            grown += letter
            vocabulary.append(grown)
    vocabulary = list(dict.fromkeys(vocabulary))
    numbers = {token: number for number, token in enumerate(vocabulary)}
    merges = list(dict.fromkeys(merges))
    if kind == "legacy":
        return LlamaTokenizer(vocab=numbers, merges=merges)
    bpe = models.BPE(numbers, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    core = Tokenizer(bpe)
    if kind == "llama":
        core.normalizer = normalizers.Sequence(
            [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
        )
        core.decoder = decoders.Sequence(
            [
                decoders.Replace(SPACE, " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        )
    else:
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        core.decoder = decoders.Sequence(
            [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first"), decoders.Fuse()]
        )
    end = " </s>" if adds_end else ""
    core.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    core.post_processor = TemplateProcessing(
        single=f"<s> $A{end}", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
