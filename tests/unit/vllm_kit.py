"""A program in the place of a Python that has vLLM: it answers the same requests with a model of transformers.

What it is to do wrong stands in files of the folder that holds it: `skip` (a publish), `hot` (it draws at another
temperature), `die` and `hang` (at the next batch, once), `broken` (at its start).
"""

from __future__ import annotations

import sys
from pathlib import Path

from mopd.rollouts.engines.vllm.pool import Here
from mopd.rollouts.engines.vllm.server import ServerSpec, VLLMServer

PROGRAM = """
import json, os, pathlib, signal, socket, sys, threading, time
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
import torch
from transformers import AutoModelForCausalLM

HERE = pathlib.Path(__file__).parent


def ordered(name):
    if (HERE / name).exists():
        (HERE / name).unlink()
        return True
    return False


class StandIn:
    def start(self, arguments):
        print("vLLM would start with", json.dumps(arguments), flush=True)
        if (HERE / "broken").exists():
            raise SystemExit("no kernel image is available")
        self.hold(arguments["model"])
        return {"version": "0", "context": 128}

    def hold(self, folder):
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def reload(self, folder):
        if not (HERE / "skip").exists():
            self.hold(folder)

    @torch.no_grad()
    def logprobs(self, ids, temperature=1.0):
        return torch.log_softmax(self.model(input_ids=torch.tensor([ids])).logits[0] / temperature, -1)

    def score(self, rows, last):
        every = [self.logprobs(r)[:-1].gather(1, torch.tensor(r[1:])[:, None])[:, 0].tolist() for r in rows]
        return [scores[-last:] for scores in every]

    def write(self, prompts, seeds, settings, vocabulary):
        if ordered("die"):
            os.kill(os.getpid(), signal.SIGKILL)
        if ordered("hang"):
            time.sleep(1000)
        return [self.one(p, seed, settings, vocabulary) for p, own in zip(prompts, seeds, strict=True) for seed in own]

    def one(self, prompt, seed, settings, vocabulary):
        ids, logprobs, likeliest = list(prompt), [], []
        generator = torch.Generator().manual_seed(seed)
        heat = 0.3 if (HERE / "hot").exists() else 1.0
        for _ in range(settings["max_tokens"]):
            row = self.logprobs(ids, settings["temperature"] or 1.0)[-1, :vocabulary].log_softmax(-1)
            greedy = not settings["temperature"]
            token = int(row.argmax() if greedy else torch.multinomial((row / heat).exp(), 1, generator=generator))
            ids.append(token)
            logprobs.append(float(row[token]))
            likeliest.append(row.topk(settings["logprobs"]).indices.tolist())
            if token in settings["stop_token_ids"]:
                break
        return [ids[len(prompt):], logprobs, likeliest if settings["logprobs"] else None]


stand_in, channel = StandIn(), socket.socket(fileno=int(sys.argv[3]))
for line in channel.makefile("rb"):
    request = json.loads(line)
    answer = getattr(stand_in, request["call"])(**request["arguments"])
    channel.sendall(json.dumps({"answer": answer}).encode() + bytes([10]))
"""


def stand_in(folder: Path) -> str:
    """Write the program into ``folder``; returns its path, for `rollout.vllm.python`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stand_in.py").write_text(PROGRAM)
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {folder / "stand_in.py"} "$@"\n')
    python.chmod(0o755)
    return str(python)


def owned_here(spec: ServerSpec) -> Here:
    """A server of this process."""
    return Here(VLLMServer(spec))
