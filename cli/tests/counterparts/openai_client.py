"""Asks a server of chandler through the `openai` package, as its users do.

usage: openai_client.py URL TOKEN

The server serves a small model, under the name `chandler` among others, with `serve.queue=0`.
"""

import sys

import openai

url, token = sys.argv[1:]
client = openai.OpenAI(base_url=url, api_key=token, max_retries=0)
messages = [{"role": "user", "content": "What is 2 + 2?"}]
greedy = dict(model="chandler", messages=messages, temperature=0, max_tokens=24)


def refused(kind, code, **changes):
    try:
        client.chat.completions.create(**{**greedy, **changes})
    except kind as error:
        assert error.code == code, (error.code, code, error)
    else:
        raise AssertionError(f"no {kind.__name__} for {changes}")


names = [model.id for model in client.models.list()]
assert len(names) == 1, names
assert client.models.retrieve(names[0]).object == "model"

whole = client.chat.completions.create(**greedy)
choice = whole.choices[0]
assert choice.message.role == "assistant" and choice.message.content, whole
assert choice.finish_reason in ("stop", "length"), whole
assert whole.usage.completion_tokens <= 24 and whole.usage.prompt_tokens > 0, whole
assert whole.id.startswith("chatcmpl-") and whole.model == names[0], whole

stream = client.chat.completions.create(
    **greedy, stream=True, stream_options={"include_usage": True}
)
text, finish, usage = "", None, None
for chunk in stream:
    if chunk.choices:
        text += chunk.choices[0].delta.content or ""
        finish = chunk.choices[0].finish_reason or finish
    usage = chunk.usage or usage
assert text == choice.message.content, (text, choice.message.content)
assert finish == choice.finish_reason and usage == whole.usage, (finish, usage)

several = client.chat.completions.create(
    **{**greedy, "temperature": 1}, n=3, seed=7, top_p=0.9, extra_body={"top_k": 50, "min_p": 0.01}
)
assert [choice.index for choice in several.choices] == [0, 1, 2], several

stop = choice.message.content[3:6]
cut = client.chat.completions.create(**greedy, stop=[stop]).choices[0]
assert cut.message.content == choice.message.content.split(stop)[0], (cut, stop)
assert cut.finish_reason == "stop", cut

plain = client.completions.create(model="chandler", prompt="One, two,", max_tokens=4, temperature=0)
assert plain.object == "text_completion" and plain.usage.completion_tokens <= 4, plain
pieces = client.completions.create(
    model="chandler", prompt="One, two,", max_tokens=4, temperature=0, stream=True
)
assert "".join(piece.choices[0].text for piece in pieces) == plain.choices[0].text

refused(openai.BadRequestError, "context_length_exceeded", max_tokens=100_000)
refused(openai.NotFoundError, "model_not_found", model="gpt-4o")
refused(openai.BadRequestError, None, temperature="warm")
refused(openai.BadRequestError, None, logprobs=True)
try:
    openai.OpenAI(base_url=url, api_key="another", max_retries=0).models.list()
    raise AssertionError("another token was taken")
except openai.AuthenticationError as error:
    assert error.code == "invalid_api_key", error

long = client.chat.completions.create(
    model="chandler", messages=messages, n=8, max_tokens=2000, seed=1, stream=True
)
next(iter(long))
refused(openai.RateLimitError, "rate_limit_exceeded")
long.close()
# The client's own retries wait until the place is free.
patient = openai.OpenAI(base_url=url, api_key=token, max_retries=10, timeout=60)
assert patient.chat.completions.create(**greedy).choices[0].message.content == text
print("all as expected")
