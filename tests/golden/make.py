"""Makes the golden policies anew: run it when their format changes.

PYTHONPATH=tests/support python tests/golden/make.py
"""

from __future__ import annotations

import json
from pathlib import Path

import families
from byte_tokens import byte_tokenizer
from drllm import Route, RoutedModel
from drllm.policies.routers import RouterConfig, Routers

HERE = Path(__file__).parent
PROMPTS = ["What do plants need?", "12 and 7", "Hello", "Once upon a time there was a river"]

base = families.build("llama", vocab_size=300, max_position_embeddings=64)
base.save_pretrained(HERE / "base")
byte_tokenizer().save_pretrained(HERE / "base")
routed = RoutedModel.wrap(str(HERE / "base"))
routed.base_id = "tests/golden/base"
routers = Routers(RouterConfig(families.N_BLOCKS, routed.hidden_size, n_windows=4, width=8), seed=4)
routers.prompt_format = "raw"
decided = {}
for name, policy in (("static-v1", Route.parse("1201")), ("routers-v1", routers)):
    routed.policy = policy
    routed.save_pretrained(HERE / name)
    outs = routed.generate(PROMPTS, max_new_tokens=4, do_sample=False)
    decided[name] = {"routes": [str(out.route) for out in outs], "token_ids": [out.token_ids for out in outs]}
(HERE / "decided.json").write_text(json.dumps(decided, indent=1) + "\n")
