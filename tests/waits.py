"""Count the places at which the host waits for the device."""

import torch


class CountedWaits(torch.overrides.TorchFunctionMode):
    """Counts calls that make the host wait for the device, also inside of torch's operators."""

    def __init__(self):
        super().__init__()
        self._called = 0
        self._profiler = torch.profiler.profile(acc_events=True)

    def __torch_function__(self, function, types, arguments=(), named=None):
        self._called += getattr(function, "__name__", "") in ("tolist", "cpu", "numpy")
        return function(*arguments, **(named or {}))

    def __enter__(self):
        self._profiler.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._profiler.__exit__(*error)

    @property
    def waits(self):
        waiting = ("aten::_local_scalar_dense", "aten::nonzero")
        inside = [one.count for one in self._profiler.key_averages() if one.key in waiting]
        return self._called + sum(inside)
