#!/bin/sh
# What `make demo` runs: every command stands here as you can type it, after `source .venv/bin/activate`.
set -eu
try() {
  printf '\n%s\n$ %s\n' "$1" "$2"
  eval "$2"
}

try "0. A policy of this repository: 27 of SmolLM2's 30 blocks, and an adapter that brings them nearer to what the base says" \
'mkdir -p runs/demo && cp -r examples/smollm2-135m-27-of-30/. runs/demo/healed'

try "1. What it writes, each time below the base's answer" \
'drllm generate --policy runs/demo/healed --dtype float32 --chat --beside-base --max-new-tokens 40 \
  "What do plants need to grow?" "Why do we have seasons?" "Write one sentence about the sea."'

try "2. Its right answers beside the base's, on questions from which nothing was learned" \
'drllm evaluate --model smollm2-135m-q4 --dtype float32 --tasks arc_easy,openbookqa --limit 150 --methods base,healed --out runs/demo'

try "3. What was promised of it when it was made" \
'drllm info examples/smollm2-135m-27-of-30 | grep promise:'

try "4. A plain checkpoint of it, and its seconds beside the base's, here and now" \
'drllm export --policy runs/demo/healed --dtype float32 --clock --out runs/demo/merged'

try "5. That checkpoint in transformers, without drllm" \
'python -c "
import transformers
ask = transformers.pipeline(\"text-generation\", \"runs/demo/merged\")
[answer] = ask([{\"role\": \"user\", \"content\": \"What do plants need to grow?\"}], max_new_tokens=40, do_sample=False)
print(answer[\"generated_text\"][-1][\"content\"])"'

printf '\nServe it: make serve-env (once), VLLM_CPU_KVCACHE_SPACE=2 .venv-serve/bin/vllm serve runs/demo/merged --dtype float32\n'
