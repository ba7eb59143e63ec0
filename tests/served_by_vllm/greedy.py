"""Run by vLLM's own Python: the greedy answers of a folder, with or without an adapter, as lines of token ids in JSON.

`python greedy.py MODEL PROMPTS.json OUT.json [ADAPTER]`; prompts and answers are lists of token ids.
"""

import json
import sys
from pathlib import Path

from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

NEW_TOKENS = 24


def main(model: str, prompts: str, out: str, adapter: str = "") -> None:
    lora = {"enable_lora": True, "max_loras": 1, "max_lora_rank": 8} if adapter else {}
    engine = LLM(model=model, dtype="float32", enforce_eager=True, max_model_len=128, **lora)
    asked = [{"prompt_token_ids": ids} for ids in json.loads(Path(prompts).read_text())]
    written = engine.generate(
        asked,
        SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True),
        lora_request=LoRARequest("adapter", 1, adapter) if adapter else None,
    )
    Path(out).write_text(json.dumps([list(answer.outputs[0].token_ids) for answer in written]))


if __name__ == "__main__":
    main(*sys.argv[1:])  # not per token
