"""The log of a check: one file, written anew after every example."""

import json
from collections.abc import Callable
from typing import Any

from files.writing import (
    LineFile,
    json_text,
    kept_from_errors,
    refused_unwritable,
    replace_json,
)
from processes.ranks import Ranks
from runs.record import RunRecord
from runs.writer import begin_log, timestamp

Result = dict[str, Any]


class CheckLog:
    """What is found of each example, in the order of examples.

    Of several processes the leading one writes the log. The others keep what they find in parts
    beside it, which go once the check is complete.
    """

    def __init__(self, output_dir: str, record: RunRecord, ranks: Ranks) -> None:
        self._output_dir, self._record, self._ranks = output_dir, record, ranks
        self._results: dict[int, Result] = {}
        self.path = begin_log(output_dir, "correctness", record, ranks)
        self._part: LineFile | None = None
        if not ranks.leads:
            with refused_unwritable(output_dir):
                self._part = LineFile(self.path.with_suffix(f".rank{ranks.rank}.jsonl"))

    def add(self, index: int, result: Result) -> None:
        """Takes in what was found of an example."""
        self._results[index] = result
        with kept_from_errors(self._output_dir, self._write_again):
            if self._part:
                self._part.add(json_text([index, result]))
            else:
                replace_json(self.path, self._so_far())

    def merge(self, while_waiting: Callable[[], None]) -> None:
        """Gives the leading process the results of all."""
        if self._ranks.count > 1:
            shares = self._ranks.collect(list(self._results.items()), while_waiting)
            self._results |= {index: one for share in shares for index, one in share}

    def finish(self, status: str, summarize: Callable[[list[Result]], Result]) -> Result:
        """Writes the log with its summary; returns it, as far as this process knows it."""
        if self._part:
            self._part.close()
        if self._ranks.leads and status != "complete":
            self._read_parts()
        results = self._in_order()
        self._record.status, self._record.ended = status, timestamp()
        log = self._record.to_dict() | {"summary": summarize(results), "examples": results}
        if self._ranks.leads:
            with kept_from_errors(self._output_dir, self._write_again):
                replace_json(self.path, log)
        if status == "complete":
            log = self._ranks.first(log)
            if self._part:
                self._part.path.unlink(missing_ok=True)
        return log

    def _so_far(self) -> Result:
        return self._record.to_dict() | {"examples": self._in_order()}

    def _in_order(self) -> list[Result]:
        return [self._results[index] for index in sorted(self._results)]

    def _write_again(self) -> None:
        """Writes anew what this process has found, where it was removed."""
        if self._part:
            self._part.write_again(json_text(list(item)) for item in self._results.items())
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            replace_json(self.path, self._so_far())

    def _read_parts(self) -> None:
        """What others have found so far, where their parts can be seen."""
        for path in self.path.parent.glob(f"{self.path.stem}.rank*.jsonl"):
            for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
                if line.endswith("\n"):
                    index, result = json.loads(line)
                    self._results.setdefault(index, result)
