"""The points of pruned drafters in the plot of speed and quality."""

from collections import defaultdict

from analysis.finished_runs import Decoder, Drafter
from analysis.plan_names import without_seed

# Speed and quality by the names of plan and mark, and the decoder.
Points = dict[tuple[str, str, Decoder], tuple[float, float]]


def fastest_drafts(points: Points) -> Points:
    """Return the points; of each pruned drafter, only that of its fastest draft length."""
    fastest: dict[tuple[str, str, bool, str], float] = defaultdict(float)
    for (plan, mark, how), (speed, _) in points.items():
        place = plan, mark, how.drafter is not None, how.drafting
        fastest[place] = max(speed, fastest[place])
    return {
        (plan, mark, how): point
        for (plan, mark, how), point in points.items()
        if how.drafter is None or point[0] == fastest[plan, mark, True, how.drafting]
    }


def decoder_without_seed(decoder: Decoder) -> Decoder:
    """Return the decoder with nothing that differs between seeds of its pruned drafter."""
    if decoder.drafter is None:
        return decoder
    return decoder._replace(drafter=Drafter(without_seed(decoder.drafter.name), ()))
