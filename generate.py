"""Answers prompts from the terminal, --prompt or standard input."""

import io
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from arguments.drafting import DraftArguments, check_together
from arguments.generation import STREAMERS, GenerationArguments
from arguments.model import ModelArguments
from arguments.prompts import PromptArguments, with_stored_template
from arguments.pruning import PruneArguments
from command_line.errors import EXIT_INTERRUPTED, UsageError, reject
from command_line.flags import flag, parse
from command_line.messages import print_error
from command_line.script import run_script

GROUPS = (ModelArguments, PruneArguments, GenerationArguments, DraftArguments, PromptArguments)
HELP = "An empty line or Ctrl-D sends a prompt, Ctrl-C stops an answer, Ctrl-D alone quits."


@dataclass(frozen=True)
class AnswerArguments:
    """The prompt, and how its answer is shown."""

    prompt: str | None = flag(
        None,
        "one prompt to answer (default: standard input; in a terminal, asks for prompts)",
    )
    streamer: str = flag(
        "standard",
        "none: show the answer at its end; standard: as it grows; speculative: with its drafts, in "
        "a terminal",
        STREAMERS,
    )

    def check(self) -> None:
        if self.prompt == "":
            reject("prompt", "''", "must not be empty")


def main(argv: list[str] | None = None) -> int:
    model, pruning, generation, draft, prompting, answering = parse(
        argv, __doc__, *GROUPS, AnswerArguments
    )
    check_together(pruning, generation, draft)
    prompting, prompt = with_stored_template(prompting, model.model), answering.prompt
    if sys.stdout is None:
        raise UsageError("standard output is closed; nothing could be shown")
    if prompt is None and not (sys.stdin and sys.stdin.isatty()):
        prompt = piped_prompt()

    from runs.preparation import load_pruned, report
    from self_speculation.speculative_streamer import make_streamer

    prepared = load_pruned(model, pruning, prompting, generation, draft=draft)
    ids = prepared.encode(prompt, generation.max_steps) if prompt is not None else [0]
    say(report(prepared.pruned))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # the terminal may lack the answer's characters
    prepared.generator(generation, len(ids))  # warm before anything is timed
    respond = Responder(prepared, generation, make_streamer(answering.streamer))
    if prompt is None:
        return converse(respond)
    return 0 if respond(prompt) else EXIT_INTERRUPTED


@dataclass
class Responder:
    """Answers one prompt after another, and reports the cost of each."""

    prepared: Any
    flags: GenerationArguments
    streamer: Any
    count: int = 0

    def __call__(self, prompt: str) -> bool:
        """Show the answer; return False if Ctrl-C stopped it."""
        self.count += 1
        started = time.perf_counter()
        try:
            made = self.prepared.generate(prompt, self.flags, str(self.count), self.streamer)
        except KeyboardInterrupt:
            self.streamer.abort()
            seconds = time.perf_counter() - started
            say(f"[stopped after {self.streamer.tokens} tokens and {seconds:.2f} s]")
            return False
        say(f"[{cost(made)}]")
        return True


def cost(made: Any) -> str:
    """Return tokens, seconds, speed of decoding and acceptance, in one line."""
    tokens = len(made.output_ids)
    parts = [
        f"{tokens} tokens in {made.prefill_seconds + made.decode_seconds:.2f} s, of which the "
        f"prompt's {made.prompt_tokens} took {made.prefill_seconds:.2f} s"
    ]
    if tokens > 1:
        parts.append(f"{(tokens - 1) / made.decode_seconds:.1f} tokens/s")
    if made.drafted_tokens:
        rate = made.accepted_tokens / made.drafted_tokens
        parts.append(f"{rate:.1%} of {made.drafted_tokens} drafts accepted")
    return "; ".join(parts)


def converse(respond: Responder) -> int:
    """Ask and answer until Ctrl-D."""
    with suppress(ImportError):
        import readline  # noqa: F401  gives `input` its history and line editing
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # `checked` refuses what is not UTF-8
    say(HELP)
    while (prompt := read_prompt()) is not None:
        try:
            respond(checked(prompt))
        except UsageError as error:
            print_error(error)
    return 0


def read_prompt() -> str | None:
    """Read lines up to an empty one or Ctrl-D; None for Ctrl-D alone. Ctrl-C starts over."""
    lines: list[str] = []
    while True:
        try:
            line = ask("... " if lines else ">>> ")
        except EOFError:
            say("")
            return "\n".join(lines) or None
        except KeyboardInterrupt:
            say("")
            lines = []
            continue
        if line:
            lines.append(line)
        elif lines:
            return "\n".join(lines)


def ask(sign: str) -> str:
    """Read a line. The sign goes to stderr if answers are redirected."""
    if sys.stdout.isatty():
        return input(sign)  # can edit the line
    print(sign, end="", file=sys.stderr, flush=True)
    return input()


def piped_prompt() -> str:
    """Read standard input, without the line break at its end."""
    if sys.stdin is None:
        reject("prompt", None, "standard input is closed")
    try:
        text = sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        reject("prompt", None, f"standard input is not UTF-8 text (byte {error.start})")
    if not text.strip():
        reject("prompt", None, "standard input is empty")
    return text.removesuffix("\n").removesuffix("\r")


def checked(prompt: str) -> str:
    """Return the prompt; refuse one that is not UTF-8 text."""
    try:
        prompt.encode()
    except UnicodeEncodeError:
        reject("prompt", None, "what was typed is not UTF-8 text")
    return prompt


def say(line: str) -> None:
    """Print to stderr a line that is not part of an answer."""
    print(line, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run_script(main))
