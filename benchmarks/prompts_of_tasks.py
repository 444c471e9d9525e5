"""Write the prompts of tasks' fit questions as a file for `drllm retrofit --prompts`, a line each with its task, without any answer.

    python benchmarks/prompts_of_tasks.py --model qwen2.5-coder-1.5b-q4 --data DATA --limit 200 --out mixed.jsonl \
        --ask letter arc_easy arc_challenge openbookqa commonsenseqa --ask number arith-6 arith-8
"""

import argparse
import json
from pathlib import Path

from drllm import RoutedModel
from drllm.core.config import HealConfig
from drllm.healing.prompts import task_prompts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data")
    parser.add_argument("--limit", type=int, default=200, help="prompts of a task, the first of its fit questions")
    parser.add_argument("--ask", nargs="+", action="append", required=True, metavar=("REWARD", "TASK"), help="how, and what")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    routed = RoutedModel.wrap(args.model, dtype="bfloat16")
    lines = []
    for reward, *tasks in args.ask:
        for task in tasks:
            found = task_prompts(routed, [task], args.data, HealConfig(reward=reward))[: args.limit]
            lines += [json.dumps({"task": task, "prompt": routed.tokenizer.decode(ids)}) for ids in found]
    args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
