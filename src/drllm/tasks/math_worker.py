r"""The helper process of grading.py: math-verify over stdin and stdout. Run as a script, never imported; needs no drllm.

In: one JSON line {"text": "\\boxed{...}", "gold": "...", "boxed": true}; with false any text, of which the last formula or number counts.
Out: "ready" once, then "1" (equal) or "0" a line.
"""

import json
import logging
import os
import signal
import sys

CPU_SECONDS = 5
MEMORY_BYTES = 4 << 30


def main() -> None:
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not look like a verdict
    try:
        from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
    except ImportError as error:
        out.write(f"{error}\n")
        return
    logging.disable(logging.CRITICAL)
    limit = _limit()
    # With limits from the kernel math-verify's own are off: they count wall time and miss long integer operations.
    own = None if limit else 5
    box = [LatexExtractionConfig(boxed_match_priority=0)]
    anything = [*box, ExprExtractionConfig()]

    def extract(text: str, config: list) -> list:
        return parse(text, extraction_config=config, extraction_mode="first_match", parsing_timeout=own)  # pyright: ignore[reportArgumentType]

    out.write("ready\n")
    out.flush()
    for line in sys.stdin:
        request = json.loads(line)
        if limit:
            limit(CPU_SECONDS)
        # The gold answer goes through the same extraction and normalisation as the model's.
        gold = extract("\\boxed{" + request["gold"] + "}", box)
        equal = verify(gold, extract(request["text"], box if request["boxed"] else anything), timeout_seconds=own)
        if limit:
            limit(0)
        out.write("1\n" if equal else "0\n")
        out.flush()


def _limit():
    """A function that gives this process so many CPU seconds from now (0: no limit); None where the platform has no such timer.

    SIGPROF ends the process even inside one long C call, where a Python signal handler would never run.
    """
    try:
        import resource
    except ImportError:
        return None
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    return lambda seconds: signal.setitimer(signal.ITIMER_PROF, seconds)


if __name__ == "__main__":
    main()
