"""Chat, streams, completions with logprobs and errors through the openai client. Argument: the URL."""

import sys

import openai

client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="none", max_retries=0)
messages = [{"role": "user", "content": "What is the capital of France? One word."}]

chat = client.chat.completions.create(model="demo", messages=messages, temperature=0, max_tokens=8)
assert "Paris" in chat.choices[0].message.content, chat
assert chat.choices[0].finish_reason == "stop", chat
assert chat.usage.total_tokens == chat.usage.prompt_tokens + chat.usage.completion_tokens, chat

pieces, usage, finish = [], None, None
stream = client.chat.completions.create(
    model="demo", messages=messages, temperature=0, max_tokens=8, stream=True,
    stream_options={"include_usage": True},
)
for chunk in stream:
    usage = chunk.usage or usage
    for choice in chunk.choices:
        pieces.append(choice.delta.content or "")
        finish = choice.finish_reason or finish
assert "".join(pieces) == chat.choices[0].message.content, pieces
assert usage.total_tokens == chat.usage.total_tokens and finish == "stop", (usage, finish)

scored = client.chat.completions.create(
    model="demo", messages=messages, temperature=0, max_tokens=4, logprobs=True, top_logprobs=2
)
entry = scored.choices[0].logprobs.content[0]
assert entry.logprob <= 0 and len(entry.top_logprobs) == 2, entry
assert entry.top_logprobs[0].logprob >= entry.top_logprobs[1].logprob, entry
assert bytes(entry.bytes).decode() == entry.token, entry

completion = client.completions.create(
    model="demo", prompt="The capital of France is", max_tokens=3, temperature=0, logprobs=2, echo=True
)
choice = completion.choices[0]
assert choice.text.startswith("The capital of France is"), choice
assert choice.logprobs.token_logprobs[0] is None and choice.logprobs.token_logprobs[1] < 0, choice
assert "".join(choice.logprobs.tokens) == choice.text, choice
assert choice.logprobs.text_offset[0] == 0 and len(choice.logprobs.top_logprobs[-1]) >= 2, choice

text = ""
for chunk in client.completions.create(model="demo", prompt="1, 2, 3,", max_tokens=5, temperature=0, stream=True):
    text += chunk.choices[0].text if chunk.choices else ""
whole = client.completions.create(model="demo", prompt="1, 2, 3,", max_tokens=5, temperature=0)
assert text == whole.choices[0].text, (text, whole)

several = client.chat.completions.create(
    model="demo", messages=messages, n=2, seed=5, max_tokens=8, presence_penalty=0.5, frequency_penalty=0.5,
    logit_bias={"0": -100}, extra_body={"min_tokens": 2, "repetition_penalty": 1.05, "priority": 1},
)
assert [choice.index for choice in several.choices] == [0, 1], several
again = client.chat.completions.create(
    model="demo", messages=messages, n=1, seed=5, max_tokens=8, presence_penalty=0.5, frequency_penalty=0.5,
    logit_bias={"0": -100}, extra_body={"min_tokens": 2, "repetition_penalty": 1.05},
)
assert again.choices[0].message.content == several.choices[0].message.content, (again, several)
both = client.completions.create(model="demo", prompt=["1, 2, 3,", "a, b, c,"], max_tokens=5, temperature=0)
assert both.choices[0].text == text and both.choices[1].index == 1, both
opened = client.chat.completions.create(
    model="demo", temperature=0, max_tokens=4, extra_body={"continue_final_message": True},
    messages=[*messages, {"role": "assistant", "content": "The capital is"}],
)
assert "Paris" in opened.choices[0].message.content, opened

assert [model.id for model in client.models.list()] == ["demo"]


def expect(error_class, **fields):
    request = {"model": "demo", "messages": messages, "max_tokens": 1, **fields}
    try:
        client.chat.completions.create(**request)
    except error_class as error:
        assert type(error) is error_class, type(error)
        return error
    raise AssertionError(f"no {error_class.__name__} for {fields}")


assert expect(openai.BadRequestError, temperature=9).param == "temperature"
assert expect(openai.BadRequestError, n=0).param == "n"
assert expect(openai.NotFoundError, model="unknown").code == "model_not_found"
assert expect(openai.BadRequestError, max_tokens=10_000_000).code == "context_length_exceeded"
print("all checks passed")
