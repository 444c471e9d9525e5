"""Routes in words: what one does otherwise than the base, and the loops of many counted. No torch."""

from drllm.core.route import Action, Route, Span

_TIMES = {1: "", 2: " twice", 3: " three times"}


def in_words(route: Route) -> str:
    """What a route does otherwise than the base, such as "skips 3, 5; repeats 7; runs 12-14 again after 14 at strength 0.5"."""
    in_place = route.in_place_actions
    skipped = [str(block) for block, n_passes in enumerate(route) if not n_passes]
    parts = [f"skips {', '.join(skipped)}"] if skipped else []
    if repeated := [str(block) for block, n_passes in enumerate(in_place) if n_passes == Action.REPEAT]:
        parts.append(f"repeats {', '.join(repeated)}")
    parts += [f"runs {block} {n_passes} times" for block, n_passes in enumerate(in_place) if n_passes > Action.REPEAT]
    parts += [*loops_in_words(route), *([f"adapter {route.adapter}"] if route.adapter else [])]
    return "; ".join(parts) or "the base's route"


def loops_in_words(route: Route) -> list[str]:
    """Each loop, such as "runs 12-14 again after 14"; where a path comes to a block late for the first time, "runs 6 after 7"."""
    passed = {block for block, n_passes in enumerate(route.in_place_actions) if n_passes}
    words, seen = [], dict.fromkeys(passed, -1)
    counted: dict[tuple[int, Span, bool], int] = {}
    for at, span in route.loops:
        again = all(seen.get(block, at + 1) <= at for block in span.blocks)
        seen |= {block: min(at, seen.get(block, at)) for block in span.blocks}
        counted[at, span, again] = counted.get((at, span, again), 0) + 1
    for (at, span, again), n in counted.items():
        strength = "" if span.strength == 1 else f" at strength {span.strength:g}"
        words.append(f"runs {plain(span)}{' again' if again else ''}{_TIMES[n]} after {at}{strength}")
    return words


def plain(span: Span) -> str:
    return str(span._replace(strength=1.0))
