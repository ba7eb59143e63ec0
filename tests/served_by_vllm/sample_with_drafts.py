"""Run by vLLM's own Python: writes completions of one prompt with guesses of the checkpoint's draft heads, as JSON.

Arguments: the checkpoint, guesses a forward (0: none), completions, tokens of each, temperature, the prompt's ids.
"""

import json
import os
import sys

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

if __name__ == "__main__":
    from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]

    path, guesses, number, tokens, temperature, prompt = sys.argv[1:]  # not per token
    speculative = {"method": "mtp", "num_speculative_tokens": int(guesses)} if int(guesses) else None
    engine = LLM(
        path,
        dtype="float32",
        max_model_len=128,
        max_num_seqs=256,
        enforce_eager=True,
        skip_tokenizer_init=True,
        enable_prefix_caching=False,
        block_size=32,
        seed=0,
        generation_config="vllm",
        disable_log_stats=False,
        speculative_config=speculative,
    )
    how = SamplingParams(
        max_tokens=int(tokens), temperature=float(temperature), ignore_eos=True, detokenize=False, logprobs=0
    )
    asked = [{"prompt_token_ids": json.loads(prompt)}] * int(number)
    answers = [list(answer.outputs[0].token_ids) for answer in engine.generate(asked, how, use_tqdm=False)]
    drafts = {
        metric.name: metric.value
        for metric in engine.get_metrics()
        if "spec_decode" in metric.name and hasattr(metric, "value")
    }
    print("ANSWER " + json.dumps({"tokens": answers, "drafts": drafts}))
