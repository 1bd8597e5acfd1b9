"""Has llama.cpp answer with exported models, and compares that with chandler's own answers.

    python llama_cpp.py FOLDER

FOLDER holds what `cli/tests/suite/models_elsewhere.rs` has written: NAME.gguf, and NAME.json with a
`question`, its `prompt_ids`, and the `new_ids` and `logprobs` of the answer. Tokens must be the same, and
log-probabilities near: llama.cpp's attention rounds to 16 bits within. The question, put to it as a
message, must become as many tokens.
"""

import json
import pathlib
import sys

import xllamacpp

NEAR = 5e-3


def server(model):
    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.n_ctx, params.n_parallel, params.warmup = 512, 1, False
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    return xllamacpp.Server(params)


for path in sorted(pathlib.Path(sys.argv[1]).glob("*.gguf")):
    wanted = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    llama = server(path)
    found = llama.handle_completions(
        {
            "prompt": wanted["prompt_ids"],
            "max_tokens": len(wanted["new_ids"]),
            "temperature": 0.0,
            "logprobs": 1,
            "ignore_eos": True,
        }
    )["choices"][0]["logprobs"]["content"]
    assert [token["id"] for token in found] == wanted["new_ids"], (path.name, found, wanted["new_ids"])
    pairs = zip(found, wanted["logprobs"], strict=True)
    off = max(abs(token["logprob"] - logprob) for token, logprob in pairs)
    assert off < NEAR, (path.name, off)
    messages = [{"role": "user", "content": wanted["question"]}]
    told = llama.handle_chat_completions({"messages": messages, "max_tokens": 1})
    tokens = told["usage"]["prompt_tokens"]
    assert tokens == len(wanted["prompt_ids"]), (path.name, tokens, len(wanted["prompt_ids"]))
    print(f"llama.cpp: {path.name}, {len(found)} tokens alike, log-probabilities within {off:.1e}")
