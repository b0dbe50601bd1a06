"""The public gRPC API, found through reflection. Arguments: its address; the URL of the HTTP API."""

import json
import struct
import sys
import time
import urllib.request

import grpc
from google.protobuf import descriptor_pool, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

channel = grpc.insecure_channel(sys.argv[1])
database = ProtoReflectionDescriptorDatabase(channel)
services = set(database.get_services())
assert {"oarlock.v1.Inference", "grpc.health.v1.Health"} <= services, services
pool = descriptor_pool.DescriptorPool(database)
inference = pool.FindServiceByName("oarlock.v1.Inference")


def message(name):
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("oarlock.v1." + name))


def method(name, response_stream=False):
    descriptor = inference.methods_by_name[name]
    kind = channel.unary_stream if response_stream else channel.unary_unary
    return kind(
        f"/oarlock.v1.Inference/{name}",
        request_serializer=lambda request: request.SerializeToString(),
        response_deserializer=message_factory.GetMessageClass(descriptor.output_type).FromString,
    )


generate, tokenize, list_models = method("Generate", True), method("Tokenize"), method("ListModels")
Request, Conversation, Message = message("GenerateRequest"), message("Conversation"), message("Message")

# Health, as probes ask for it.
health = health_pb2_grpc.HealthStub(channel)
for service in ["", "oarlock.v1.Inference"]:
    answer = health.Check(health_pb2.HealthCheckRequest(service=service))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING, answer
watched = health.Watch(health_pb2.HealthCheckRequest(service="oarlock.v1.Inference"))
assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
watched.cancel()

models = list_models(message("ListModelsRequest")()).models
assert [model.name for model in models] == ["demo"] and models[0].max_model_len > 0, models


def http(path, body):
    request = urllib.request.Request(
        sys.argv[2] + path, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    return json.load(urllib.request.urlopen(request, timeout=120))


def collect(events):
    """First event, texts and finish events by choice, tokens by choice, usage."""
    started, texts, ends, tokens, usage = None, {}, {}, {}, None
    for event in events:
        kind = event.WhichOneof("event")
        assert usage is None, "nothing follows the usage"
        if kind == "started":
            assert started is None and not texts
            started = event.started
        elif kind == "piece":
            texts[event.piece.index] = texts.get(event.piece.index, "") + event.piece.text
            tokens.setdefault(event.piece.index, []).extend(event.piece.tokens)
        elif kind == "finished":
            ends[event.finished.index] = event.finished
        else:
            usage = event.usage
    return started, texts, ends, tokens, usage


# A chat: the same answer as over HTTP.
question = "What is the capital of France? One word."
request = Request(model="demo", conversation=Conversation(messages=[Message(role="user", content=question)]))
request.sampling.temperature = 0
request.stopping.max_tokens = 8
started, texts, ends, _, usage = collect(generate(request))
over_http = http("/v1/chat/completions", {
    "model": "demo", "messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 8,
})
assert texts[0] == over_http["choices"][0]["message"]["content"], texts
assert "Paris" in texts[0] and ends[0].reason == 1 and not ends[0].WhichOneof("stop"), ends
assert usage.completion_tokens == over_http["usage"]["completion_tokens"], usage
assert started.model == "demo" and started.system_fingerprint == over_http["system_fingerprint"], started


def bits(logprob):
    """Of the float32 that the server has."""
    return struct.pack("<f", logprob)


# Two seeded choices with logprobs and a stop string: bit for bit those of HTTP.
request = Request(model="demo", text="Numbers: one, two,")
request.sampling.seed, request.sampling.n = 11, 2
request.stopping.max_tokens, request.output.logprobs, request.output.token_ids = 6, 2, True
started, texts, ends, tokens, usage = collect(generate(request))
over_http = http("/v1/completions", {
    "model": "demo", "prompt": "Numbers: one, two,", "seed": 11, "n": 2, "max_tokens": 6, "logprobs": 2,
    "return_token_ids": True,
})
for choice in over_http["choices"]:
    index = choice["index"]
    assert texts[index] == choice["text"], (texts, choice)
    assert [token.id for token in tokens[index]] == choice["token_ids"], choice
    assert len(tokens[index]) == len(choice["logprobs"]["token_logprobs"]) > 0, choice
    for token, logprob in zip(tokens[index], choice["logprobs"]["token_logprobs"]):
        assert bits(token.logprob) == bits(logprob) and len(token.top) == 2, (token, logprob)
assert started.seed == 11 and list(started.prompt_token_ids) == over_http["choices"][0]["prompt_token_ids"]

request = Request(model="demo", text="1, 2, 3,")
request.sampling.temperature = 0
request.stopping.max_tokens = 20
request.stopping.stop.append(" 5")
_, texts, ends, _, _ = collect(generate(request))
assert texts[0] == " 4," and ends[0].stop_string == " 5", (texts, ends)

tokens = tokenize(message("TokenizeRequest")(model="demo", text="Hello, world!"))
assert list(tokens.token_ids) == [9707, 11, 1879, 0], tokens
request = Request(model="demo", token_ids=message("TokenIds")(ids=tokens.token_ids))
request.stopping.max_tokens, request.output.prompt_logprobs = 1, 0
_, _, ends, _, _ = collect(generate(request))
assert [token.id for token in ends[0].prompt_tokens] == list(tokens.token_ids), ends
assert not ends[0].prompt_tokens[0].HasField("logprob") and ends[0].prompt_tokens[1].logprob < 0


def fails(code, request, detail):
    try:
        list(generate(request))
    except grpc.RpcError as error:
        assert error.code() == code and detail in error.details(), (error.code(), error.details())
        metadata = dict(error.trailing_metadata())
        assert b"oarlock" in metadata["grpc-status-details-bin"], metadata
        return
    raise AssertionError(f"{request} did not fail")


fails(grpc.StatusCode.NOT_FOUND, Request(model="other", text="x"), "other")
fails(grpc.StatusCode.INVALID_ARGUMENT, Request(model="demo"), "prompt")
hot = Request(model="demo", text="x")
hot.sampling.temperature = 9
fails(grpc.StatusCode.INVALID_ARGUMENT, hot, "temperature")
fails(grpc.StatusCode.INVALID_ARGUMENT, Request(model="demo", text="word " * 20_000), "context")



def total(name):
    """A metric of the engine; one that is busy is left out of a scrape."""
    while True:
        with urllib.request.urlopen(sys.argv[2] + "/metrics", timeout=10) as page:
            for line in page.read().decode().splitlines():
                if line.startswith(f"oarlock_{name}{{"):
                    return float(line.split()[-1])


# A cancelled call frees the engine.
request = Request(model="demo", text="Once upon a time")
request.stopping.max_tokens, request.stopping.ignore_eos = 2000, True
before = total("generation_tokens_total")
call = generate(request)
next(call), next(call)
call.cancel()
until = time.monotonic() + 20
while total("num_requests_running") != 0:
    assert time.monotonic() < until, "a cancelled call still runs"
    time.sleep(0.02)
given = total("generation_tokens_total") - before
assert given < 300, f"a cancelled call goes on: {given} tokens"

print("all checks passed")
