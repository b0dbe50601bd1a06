#!/usr/bin/env python3
"""Prompt and decode speed of a running server over HTTP, with nothing but the standard library.

    python3 benches/http_speed.py [URL] [MODEL]

Prints the time to the first token and prompt tokens/s for a prompt of about 500 tokens that no
cache knows, then output tokens/s for 1, 4 and 16 streams of 64 tokens.
"""

import concurrent.futures
import json
import sys
import time
import urllib.request

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
MODEL = sys.argv[2] if len(sys.argv) > 2 else "demo"


def post(path, body):
    data = json.dumps(body).encode()
    request = urllib.request.Request(URL + path, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request) as response:
        return json.load(response)


def complete(prompt, max_tokens):
    body = {"model": MODEL, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
    begin = time.perf_counter()
    usage = post("/v1/completions", body)["usage"]
    return time.perf_counter() - begin, usage


def prompt_speed(round_number):
    words = " ".join(f"item {round_number}-{index} of the list" for index in range(70))
    seconds, usage = complete(words, 1)
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    tokens = usage["prompt_tokens"] - cached
    print(f"prompt: {tokens} tokens in {seconds:.2f} s: {tokens / seconds:.0f} tokens/s")


def decode_speed(streams):
    begin = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(streams) as pool:
        runs = [pool.submit(complete, f"Chapter {streams}.{index}:", 64) for index in range(streams)]
        tokens = sum(run.result()[1]["completion_tokens"] for run in runs)
    seconds = time.perf_counter() - begin
    print(f"{streams:2} streams: {tokens} tokens in {seconds:.2f} s: {tokens / seconds:.1f} tokens/s")


complete("warm up", 4)
for round_number in range(3):
    prompt_speed(round_number)
for streams in (1, 4, 16):
    decode_speed(streams)
