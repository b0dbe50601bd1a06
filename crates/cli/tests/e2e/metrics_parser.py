"""Reads /metrics with the parsers of prometheus_client, in both formats. Argument: the URL.

Expects a fresh server of the model "tiny" after two completions of 8 tokens with one prompt, one that
ended at a stop string, one whose client went away, and one that was refused.
"""

import sys
import urllib.request

import prometheus_client.openmetrics.parser
import prometheus_client.parser

MODEL, ENGINE = {"model_name"}, {"engine", "model_name"}
# Name without `oarlock_`, type, labels.
EXPECTED = [
    ("num_requests_running", "gauge", ENGINE),
    ("num_requests_waiting", "gauge", ENGINE),
    ("num_requests_waiting_by_reason", "gauge", ENGINE | {"reason"}),
    ("num_tokens_waiting", "gauge", ENGINE),
    ("kv_cache_usage_perc", "gauge", ENGINE),
    ("cache_config_info", "gauge", ENGINE | {"block_size", "num_blocks", "enable_prefix_caching"}),
    ("engine_ready", "gauge", ENGINE),
    ("worker_info", "gauge", {"engine", "rank", "pid"}),
    ("prefix_cache_queries", "counter", ENGINE),
    ("prefix_cache_hits", "counter", ENGINE),
    ("num_preemptions", "counter", ENGINE),
    ("prompt_tokens", "counter", ENGINE),
    ("prompt_tokens_cached", "counter", ENGINE),
    ("prompt_tokens_by_source", "counter", ENGINE | {"source"}),
    ("generation_tokens", "counter", ENGINE),
    ("admission_rejections", "counter", ENGINE | {"reason"}),
    ("worker_restarts", "counter", ENGINE),
    ("steps", "counter", ENGINE),
    ("request_success", "counter", MODEL | {"finished_reason"}),
    ("corrupted_requests", "counter", MODEL),
    ("http_requests", "counter", {"route", "status"}),
    ("step_time_seconds", "histogram", ENGINE),
    ("iteration_tokens_total", "histogram", ENGINE),
] + [
    (name, "histogram", MODEL)
    for name in [
        "time_to_first_token_seconds", "inter_token_latency_seconds",
        "request_time_per_output_token_seconds", "e2e_request_latency_seconds",
        "request_queue_time_seconds", "request_inference_time_seconds",
        "request_prefill_time_seconds", "request_decode_time_seconds", "request_prompt_tokens",
        "request_generation_tokens", "request_params_n", "request_params_max_tokens",
        "request_num_preemptions",
    ]
]
OPENMETRICS = "application/openmetrics-text; version=1.0.0, text/plain;version=0.0.4;q=0.5"


def scrape(accept):
    request = urllib.request.Request(sys.argv[1] + "/metrics", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.headers["content-type"], answer.read().decode()


def check(families):
    """Names, types, labels and buckets; all samples by name."""
    samples = {}
    for family in families.values():
        assert family.name.startswith("oarlock_") and family.documentation, family
        for sample in family.samples:
            samples.setdefault(sample.name, []).append(sample)
    for name, kind, labels in EXPECTED:
        family = families.get("oarlock_" + name)
        assert family is not None and family.type == kind, (name, kind, family)
        assert family.samples, name
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == labels, sample
            assert sample.value >= 0, sample
        if kind == "histogram":
            check_histogram(family)
    assert len(families) == len(EXPECTED) + 4, sorted(set(families) - {"oarlock_" + e[0] for e in EXPECTED})
    return samples


def check_histogram(family):
    series = {}
    for sample in family.samples:
        labels = tuple(sorted((key, value) for key, value in sample.labels.items() if key != "le"))
        suffix = sample.name.removeprefix(family.name)
        series.setdefault(labels, {}).setdefault(suffix, []).append(sample)
    for parts in series.values():
        assert set(parts) == {"_bucket", "_sum", "_count"}, parts
        bounds = [float(sample.labels["le"]) for sample in parts["_bucket"]]
        counts = [sample.value for sample in parts["_bucket"]]
        assert bounds == sorted(set(bounds)) and bounds[-1] == float("inf"), (family.name, bounds)
        assert counts == sorted(counts), (family.name, counts)
        assert counts[-1] == parts["_count"][0].value, family.name
        assert (parts["_sum"][0].value > 0) <= (counts[-1] > 0), family.name


def value(samples, name, **labels):
    found = [
        sample.value for sample in samples["oarlock_" + name]
        if all(sample.labels[key] == wanted for key, wanted in labels.items())
    ]
    assert len(found) == 1, (name, labels, found)
    return found[0]


def check_values(samples):
    for reason, count in [("length", 2), ("stop", 1), ("abort", 1), ("error", 0)]:
        assert value(samples, "request_success_total", finished_reason=reason) == count, reason
    # Those that were answered: their lengths, and as many latencies.
    prompt = value(samples, "request_prompt_tokens_sum") / 3
    assert prompt == 37, prompt
    for name in ["request_prompt_tokens", "request_params_n", "e2e_request_latency_seconds",
                 "request_decode_time_seconds", "request_time_per_output_token_seconds"]:
        assert value(samples, name + "_count") == 3, name
    assert value(samples, "request_params_max_tokens_sum") == 24
    # A stop string ends a request before the engine says how often it was preempted.
    assert value(samples, "request_num_preemptions_count") == 2
    generated = value(samples, "request_generation_tokens_sum")
    assert 16 < generated <= 24, generated
    # The aborted one, too, had a first token.
    assert value(samples, "time_to_first_token_seconds_count") == 4
    assert value(samples, "request_queue_time_seconds_count") == 4
    assert value(samples, "generation_tokens_total") >= generated
    # Two whole blocks of the prompt, for all but the first.
    assert value(samples, "prefix_cache_hits_total") == 3 * 32
    assert value(samples, "prompt_tokens_cached_total") == 3 * 32
    assert value(samples, "prompt_tokens_by_source_total", source="local_cache_hit") == 3 * 32
    computed = value(samples, "prompt_tokens_by_source_total", source="local_compute")
    assert computed + 3 * 32 == value(samples, "prompt_tokens_total") == 4 * 37, computed
    # The engine's own histograms: every step that computed is in both, and so is every token of it.
    # Other steps only release slots: after each of the four requests, one at most.
    steps, computing = value(samples, "steps_total"), value(samples, "step_time_seconds_count")
    assert 0 < computing <= steps <= computing + 4, (computing, steps)
    assert value(samples, "step_time_seconds_sum") > 0
    assert value(samples, "iteration_tokens_total_count") == computing, computing
    # The last token of an answer is never computed, one behind a stop or a cancel may be.
    tokens = value(samples, "iteration_tokens_total_sum")
    assert computed + generated - 3 <= tokens, (computed, generated, tokens)
    assert value(samples, "http_requests_total", route="/v1/completions", status="400") == 1
    assert value(samples, "num_requests_running") == value(samples, "num_requests_waiting") == 0
    info = samples["oarlock_cache_config_info"][0]
    assert info.labels["block_size"] == "16" and int(info.labels["num_blocks"]) > 0, info


content_type, text = scrape("*/*")
assert content_type.startswith("text/plain; version=0.0.4"), content_type
classic = {family.name: family for family in prometheus_client.parser.text_string_to_metric_families(text)}
check_values(check(classic))
assert "# TYPE oarlock_steps_total counter" in text and "# EOF" not in text

content_type, text = scrape(OPENMETRICS)
assert content_type.startswith("application/openmetrics-text; version=1.0.0"), content_type
families = prometheus_client.openmetrics.parser.text_string_to_metric_families(text)
strict = {family.name: family for family in families}
check_values(check(strict))
assert set(classic) == set(strict), set(classic) ^ set(strict)
print("all checks passed")
