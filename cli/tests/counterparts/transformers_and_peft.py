"""Has transformers and peft load exported models and adapters, and compares with chandler's answers.

    python transformers_and_peft.py FOLDER

FOLDER holds what `cli/tests/suite/models_elsewhere.rs` has written: NAME.json with the `prompt_ids`, and
the `new_ids` and `logprobs` of an answer, and `of`: the folder of the `model`, and of an `adapter` where
there is one.
"""

import json
import pathlib
import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

NEAR = 1e-4


for path in sorted(pathlib.Path(sys.argv[1]).glob("*.json")):
    wanted = json.loads(path.read_text(encoding="utf-8"))
    if "of" not in wanted:
        continue
    model = AutoModelForCausalLM.from_pretrained(wanted["of"]["model"], dtype=torch.float32)
    assert len(AutoTokenizer.from_pretrained(wanted["of"]["model"])) > 0
    if "adapter" in wanted["of"]:
        model = PeftModel.from_pretrained(model, wanted["of"]["adapter"])
    prompt, answer = wanted["prompt_ids"], wanted["new_ids"]
    with torch.no_grad():
        logits = model.eval()(torch.tensor([prompt + answer])).logits[0]
    found = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    assert found.argmax(-1).tolist() == answer, (path.name, found.argmax(-1).tolist(), answer)
    chosen = found.gather(-1, torch.tensor(answer)[:, None])[:, 0]
    off = (chosen - torch.tensor(wanted["logprobs"])).abs().max().item()
    assert off < NEAR, (path.name, off)
    print(f"transformers: {path.stem}, {len(answer)} tokens alike, log-probabilities within {off:.1e}")
