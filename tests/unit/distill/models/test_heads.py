"""Output heads: read alone from a checkpoint, and refused where hidden states times a matrix are not the logits."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from check_kit import problems, save_model, tokenizer_of
from peft import LoraConfig, get_peft_model
from student_kit import FAMILIES, VOCABULARY, make_model
from transformers import AutoConfig, AutoModelForCausalLM

from mopd.distill.models.heads import HeadSource, fingerprint, head_problem
from mopd.distill.models.load import load_model
from mopd.distill.payload_rows import PAYLOADS, RowSizes
from mopd.distill.payloads import Support, finite_rows, likeliest, payload_bytes, to_torch
from mopd.distill.types import Full, Hidden, PayloadName, UserError
from mopd.teachers.kinds.checkpoint import TeacherModel

TINY = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 32, "pad_token_id": 0, "eos_token_id": 1,
    "bos_token_id": None,
}  # fmt: skip
HIDDEN = {"estimator": "full_reverse_kl", "payload": "hidden"}


def teacher(path: str | Path, dtype: str = "float32", **settings: Any) -> TeacherModel:
    return TeacherModel(path, device="cpu", dtype=dtype, temperature=0.7, microbatch_tokens=64, **settings)


def asked(n: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(2, 32, int(rng.integers(3, 9))).astype(np.int32) for _ in range(n)]


@pytest.mark.parametrize("saved", ["whole", "sharded", "tied", "pickled"])
def test_a_head_is_read_alone_and_is_the_teachers_own(tmp_path: Path, saved: str) -> None:
    config = AutoConfig.for_model("llama", **TINY, tie_word_embeddings=saved == "tied")
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path, **({"max_shard_size": "2KB"} if saved == "sharded" else {}))
    if saved == "pickled":
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
    assert (tmp_path / "model.safetensors.index.json").is_file() == (saved == "sharded")
    weight_VH = HeadSource(str(tmp_path), "float32").read("cpu")
    assert torch.equal(weight_VH, model.get_output_embeddings().weight)
    held = teacher(tmp_path)
    (said, *_) = held.score(asked(), "hidden")
    assert isinstance(said, Hidden)
    assert said.head == fingerprint(weight_VH)
    assert fingerprint(weight_VH + 1e-6) != said.head
    assert fingerprint(weight_VH.bfloat16()) != said.head


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_hidden_states_and_the_head_are_the_whole_distribution(tmp_path: Path, family: str, dtype: str) -> None:
    path = make_model(tmp_path, family)
    held, head_VH = teacher(path, dtype), HeadSource(path, dtype).read("cpu")
    given = [ids % VOCABULARY for ids in asked()]
    for full, hidden in zip(held.score(given, "full"), held.score(given, "hidden"), strict=True):
        assert isinstance(full, Full)
        assert isinstance(hidden, Hidden)
        hidden_TH = to_torch(hidden.hidden_TH)
        assert hidden_TH.dtype == getattr(torch, dtype)
        rows_TV = torch.log_softmax((hidden_TH @ head_VH.T).float() / 0.7, -1).numpy()
        np.testing.assert_allclose(rows_TV[1:], full.logprobs_TV[1:], atol=2e-5 if dtype == "float32" else 0.02)


def on_meta(model_type: str, **changes: Any) -> Any:
    config = AutoConfig.for_model(model_type, **{**TINY, **changes})
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(
    ("model_type", "changes", "told"),
    [
        *((family, FAMILIES[family], None) for family in FAMILIES),
        ("gemma3_text", {}, None),
        ("gemma2", {}, "scales or caps its logits after its output head"),
        ("granite", {"logits_scaling": 8.0}, "scales or caps its logits after its output head"),
        ("cohere", {}, "scales or caps its logits after its output head"),
        ("phi", {}, "has a bias in its output head"),
    ],
)
def test_what_a_model_does_after_its_hidden_states(model_type: str, changes: dict[str, Any], told: str | None) -> None:
    assert head_problem(on_meta(model_type, **changes)) == told


def test_a_model_that_caps_its_logits_is_caught_where_it_scores(tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(AutoConfig.for_model("gemma2", **TINY)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="the model scales or caps its logits after its output head"):
        teacher(tmp_path).score(asked(), "hidden")


@pytest.mark.parametrize("target", ["q_proj", "lm_head"])
def test_an_adapter_may_change_all_but_the_head(tmp_path: Path, target: str) -> None:
    base = save_model(tmp_path / "base", tokenizer_of("arithmetic"))
    settings = LoraConfig(r=2, target_modules=[target], task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(load_model(base, device="cpu", dtype="float32"), settings).save_pretrained(str(tmp_path / "adapter"))
    held = teacher(base, adapters=[str(tmp_path / "adapter")])
    given = [ids % 20 for ids in asked()]
    changes = {
        "student": {"model": base},
        "teachers": {"math": {"model": base, "adapter": str(tmp_path / "adapter")}},
        "stages": {},
        "rollout": {"max_new_tokens": 1000},  # refused in any case
        "loss": HIDDEN,
    }
    told = [one for one in problems(tmp_path / "run", **changes) if "max_new_tokens" not in one]
    if target == "lm_head":
        with pytest.raises(UserError, match="has an output head that is no plain matrix"):
            held.score(given, "hidden", str(tmp_path / "adapter"))
        assert any("`teachers.math` (" in one and "an output head that is no plain matrix" in one for one in told)
        return
    assert told == []
    full, hidden = (held.score(given, payload, str(tmp_path / "adapter")) for payload in ("full", "hidden"))
    head_VH = HeadSource(base, "float32").read("cpu")
    assert isinstance(full[0], Full)
    assert isinstance(hidden[0], Hidden)
    rows_TV = torch.log_softmax(to_torch(hidden[0].hidden_TH) @ head_VH.T / 0.7, -1).numpy()
    np.testing.assert_allclose(rows_TV[1:], full[0].logprobs_TV[1:], atol=2e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_found_in_bfloat16_too(value: float) -> None:
    rows = torch.tensor([[1.0, -3e38], [value, 0.0], [0.0, 0.0]])
    assert finite_rows(rows.numpy()).tolist() == [True, False, True]
    assert finite_rows(rows.bfloat16().view(torch.uint16).numpy()).tolist() == [True, False, True]
    assert finite_rows(rows[:, 0].numpy()).tolist() == [True, False, True]


@pytest.mark.parametrize("payload", ["full", "sampled", "topk", "hidden"])
def test_arrays_are_shipped_as_they_are_and_as_many_bytes_as_planned(tmp_path: Path, payload: PayloadName) -> None:
    """Ray pickles by protocol 5, which leaves arrays out of its stream: what is in the stream would be copied."""
    support = Support(5, (0, 1), "union")
    held = teacher(make_model(tmp_path), support=support)
    given = [likeliest(torch.randn(len(ids), VOCABULARY), support).numpy().astype(np.int32) for ids in asked()]
    said = held.score(asked(), payload, None, given)
    buffers: list[pickle.PickleBuffer] = []
    stream = pickle.dumps(said, protocol=5, buffer_callback=buffers.append)
    per_token = PAYLOADS[payload].row_bytes(RowSizes(vocabulary=VOCABULARY, hidden=32, support=12, value_bytes=4))
    expected = [per_token * len(ids) for ids in asked()]
    assert [payload_bytes(one) for one in said] == expected
    assert sum(memoryview(one).nbytes for one in buffers) == sum(expected)
    assert len(stream) < 400 * len(said)
