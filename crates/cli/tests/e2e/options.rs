//! The completion API's options against naive implementations, on the tiny model: what an option means
//! is computed here from the answers of requests without it.

use oarlock_testkit::{PATIENCE, Server, ServerOptions, TinyModel, wait_until};
use serde_json::{Value, json};

use crate::disturbance::{ON_THEIR_WAY, PATIENT, Stopped, in_its_middle};

/// A request with further fields.
fn request(fields: &Value) -> Value {
    let mut request = json!({
        "model": "tiny", "prompt": "the wheel goes round and round", "max_tokens": 24, "seed": 3,
        "temperature": 0, "ignore_eos": true, "logprobs": 20, "return_token_ids": true,
        "return_tokens_as_token_ids": true,
    });
    for (name, value) in fields.as_object().unwrap() {
        request[name] = value.clone();
    }
    request
}

fn complete(server: &Server, fields: &Value) -> Value {
    server.post("/v1/completions", &request(fields)).ok_json()
}

fn ids(choice: &Value) -> Vec<u64> {
    choice["token_ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect()
}

/// Ids and logprobs of the most likely tokens at one place of the answer.
fn likely(choice: &Value, place: usize) -> Vec<(u64, f64)> {
    let top = choice["logprobs"]["top_logprobs"][place].as_object().unwrap();
    let id = |label: &String| label.strip_prefix("token_id:").unwrap().parse().unwrap();
    top.iter().map(|(label, logprob)| (id(label), logprob.as_f64().unwrap())).collect()
}

/// Greedy answers under biases and additive penalties: at each place the best of the raw logprobs after
/// the naive sum. A place whose winner may lie outside of the twenty most likely is not judged.
fn naive_greedy_agrees(server: &Server, fields: &Value, bias: impl Fn(u64, &[u64]) -> f64) {
    let body = complete(server, fields);
    let choice = &body["choices"][0];
    let answer = ids(choice);
    let mut judged = 0;
    for (place, token) in answer.iter().enumerate() {
        let before = &answer[..place];
        let places = likely(choice, place);
        let best = |worth: &dyn Fn(u64, f64) -> f64| {
            let mut ranked: Vec<(f64, u64)> =
                places.iter().map(|(id, logprob)| (worth(*id, *logprob), *id)).collect();
            ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            ranked[0]
        };
        let (worth, winner) = best(&|id, logprob| logprob + bias(id, before));
        let least_listed = places.iter().map(|entry| entry.1).fold(f64::INFINITY, f64::min);
        if worth > least_listed + 1e-4 {
            assert_eq!(*token, winner, "place {place} of {fields}: {places:?}");
            judged += 1;
        }
    }
    assert!(judged > answer.len() / 2, "only {judged} places of {fields} could be judged");
}

fn count(ids: &[u64], id: u64) -> f64 {
    ids.iter().filter(|other| **other == id).count() as f64
}

fn penalties_and_biases(server: &Server) {
    let plain = complete(server, &json!({}));
    let used = ids(&plain["choices"][0])[0];
    naive_greedy_agrees(server, &json!({}), |_, _| 0.0);
    naive_greedy_agrees(server, &json!({"frequency_penalty": 0.7}), |id, before| {
        -0.7 * count(before, id)
    });
    naive_greedy_agrees(server, &json!({"presence_penalty": 1.3}), |id, before| {
        if before.contains(&id) { -1.3 } else { 0.0 }
    });
    let fields = json!({"frequency_penalty": -0.4, "presence_penalty": 0.9});
    naive_greedy_agrees(server, &fields, |id, before| {
        0.4 * count(before, id) - if before.contains(&id) { 0.9 } else { 0.0 }
    });
    let fields = json!({"logit_bias": {used.to_string(): -3.5}});
    naive_greedy_agrees(server, &fields, |id, _| if id == used { -3.5 } else { 0.0 });
    // A repetition penalty needs the logits themselves; far from 1 its effect is plain.
    let strong = complete(server, &json!({"repetition_penalty": 50.0}));
    assert_ne!(ids(&strong["choices"][0]), ids(&plain["choices"][0]));
    let neutral = complete(server, &json!({"repetition_penalty": 1.0, "presence_penalty": 0}));
    assert_eq!(neutral["choices"], plain["choices"]);
}

fn masks(server: &Server) {
    let plain = complete(server, &json!({"temperature": 1}));
    let drawn = ids(&plain["choices"][0]);
    let allowed = [65, 66, 67, 68];
    let fields = json!({"temperature": 1, "allowed_token_ids": allowed});
    assert!(ids(&complete(server, &fields)["choices"][0]).iter().all(|id| allowed.contains(id)));
    let forced = complete(server, &json!({"logit_bias": {"70": 100}, "temperature": 1}));
    assert!(ids(&forced["choices"][0]).iter().all(|id| *id == 70));
    let banned =
        complete(server, &json!({"logit_bias": {drawn[0].to_string(): -100}, "temperature": 1}));
    assert!(!ids(&banned["choices"][0]).contains(&drawn[0]));
    // One token per byte: words of two letters over an alphabet of two.
    let fields = json!({"temperature": 1, "allowed_token_ids": [97, 98], "bad_words": ["ab", "bbb"],
        "max_tokens": 40});
    let body = complete(server, &fields);
    let text = body["choices"][0]["text"].as_str().unwrap();
    assert!(text.len() == 40 && !text.contains("ab") && !text.contains("bbb"), "{text}");
    // Stop tokens wait for the least length.
    let fields =
        json!({"allowed_token_ids": [97, 98], "stop_token_ids": [97, 98], "min_tokens": 5});
    let refused = server.post("/v1/completions", &request(&fields));
    assert_eq!(refused.status, 400, "nothing is left to draw: {}", refused.text());
    assert_eq!(refused.json()["error"]["code"], "no_token_allowed");
    let fields = json!({"allowed_token_ids": [97, 98], "stop_token_ids": [97], "min_tokens": 5,
        "temperature": 1, "max_tokens": 200});
    let body = complete(server, &fields);
    let choice = &body["choices"][0];
    let answer = ids(choice);
    assert!(answer.len() > 5 && answer[..5].iter().all(|id| *id == 98), "{choice}");
    assert_eq!((answer.last(), &choice["stop_reason"]), (Some(&97), &json!(97)));
    assert!(choice["text"].as_str().unwrap().bytes().all(|byte| byte == b'b'));
}

fn choices_and_prompts(server: &Server) {
    let alone = complete(server, &json!({"temperature": 1}));
    let several = complete(server, &json!({"temperature": 1, "n": 4}));
    let choices = several["choices"].as_array().unwrap();
    assert_eq!(choices[0], alone["choices"][0], "the first choice is the only one's");
    assert!((1..4).all(|index| ids(&choices[index]) != ids(&choices[0])), "choices differ");
    assert_eq!(several["usage"]["prompt_tokens"], alone["usage"]["prompt_tokens"]);
    // The best of four by the naive mean.
    let mean = |choice: &Value| {
        let logprobs = choice["logprobs"]["token_logprobs"].as_array().unwrap();
        logprobs.iter().map(|l| l.as_f64().unwrap()).sum::<f64>() / logprobs.len() as f64
    };
    let mut ranked: Vec<&Value> = choices.iter().collect();
    ranked.sort_by(|a, b| mean(b).total_cmp(&mean(a)));
    let best = complete(server, &json!({"temperature": 1, "n": 2, "best_of": 4}));
    for (given, expected) in best["choices"].as_array().unwrap().iter().zip(ranked) {
        assert_eq!(given["token_ids"], expected["token_ids"]);
    }
    // Several prompts are what each is alone.
    let prompts = ["one", "and another one", "the third"];
    let together = complete(server, &json!({"prompt": prompts, "n": 2, "temperature": 1}));
    for (index, prompt) in prompts.iter().enumerate() {
        let alone = complete(server, &json!({"prompt": prompt, "n": 2, "temperature": 1}));
        for choice in 0..2 {
            let mut expected = alone["choices"][choice].clone();
            expected["index"] = json!(2 * index + choice);
            assert_eq!(together["choices"][2 * index + choice], expected);
        }
    }
}

fn prompts_and_their_scores(server: &Server) {
    let echoed = complete(server, &json!({"echo": true, "logprobs": 2, "max_tokens": 1}));
    let scored = complete(server, &json!({"prompt_logprobs": 2, "max_tokens": 1}));
    let echoed = echoed["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap();
    let places = scored["choices"][0]["prompt_logprobs"].as_array().unwrap();
    let prompt = scored["choices"][0]["prompt_token_ids"].as_array().unwrap();
    assert_eq!(places.len(), prompt.len());
    assert!(places[0].is_null());
    for ((place, id), echoed) in places.iter().zip(prompt).zip(echoed).skip(1) {
        let own = &place[id.to_string()];
        assert_eq!(&own["logprob"], echoed, "{place}");
        let rank = own["rank"].as_u64().unwrap();
        assert_eq!(place.as_object().unwrap().len(), if rank <= 2 { 2 } else { 3 }, "{place}");
    }
    let cut = complete(server, &json!({"truncate_prompt_tokens": 5, "max_tokens": 4}));
    let tail: Vec<Value> = prompt[prompt.len() - 5..].to_vec();
    assert_eq!(cut["choices"][0]["prompt_token_ids"], json!(tail));
    let same = complete(server, &json!({"prompt": tail, "max_tokens": 4}));
    assert_eq!(cut["choices"][0]["token_ids"], same["choices"][0]["token_ids"]);
}

/// The prompt of an open last message is that of the messages before it, and then its text.
fn open_last_messages(server: &Server) {
    let user = json!({"role": "user", "content": "how does it go?"});
    let before = json!({"model": "tiny", "messages": [user], "return_token_strs": true});
    let before = server.post("/tokenize", &before).ok_json();
    let words = server.post("/tokenize", &json!({"model": "tiny", "prompt": "It goes"})).ok_json();
    let naive: Vec<Value> = [&before["tokens"], &words["tokens"]]
        .iter()
        .flat_map(|t| t.as_array().unwrap().clone())
        .collect();
    let opened = json!({"model": "tiny", "max_tokens": 8, "temperature": 0, "return_token_ids": true,
        "messages": [user, {"role": "assistant", "content": "It goes"}], "continue_final_message": true});
    let opened = server.post("/v1/chat/completions", &opened).ok_json();
    assert_eq!(opened["prompt_token_ids"], json!(naive));
    let same = complete(server, &json!({"prompt": naive, "max_tokens": 8, "ignore_eos": false}));
    assert_eq!(opened["choices"][0]["token_ids"], same["choices"][0]["token_ids"]);
}

/// With one slot, a more urgent request takes it from the one that runs, and both answers are whole.
fn urgent_requests_go_first(server: &Server) {
    let long = json!({"max_tokens": 400, "priority": 5, "logprobs": null});
    let alone = complete(server, &long);
    let mut streamed = request(&long);
    streamed["stream"] = json!(true);
    let events = in_its_middle(|| {
        let counts = || {
            let metrics = server.metrics();
            let count = |name| metrics.sum(name).unwrap();
            (count("oarlock_num_preemptions_total"), count("oarlock_generation_tokens_total"))
        };
        let (preemptions, tokens) = counts();
        let mut stream = server.stream("/v1/completions", &streamed);
        let mut events = vec![stream.next().expect("an event").expect("it begins")];
        // The long one cannot end before the urgent one has come.
        let stopped = Stopped::all(server);
        let given = (counts().1 - tokens) as usize;
        if given + ON_THEIR_WAY >= 400 {
            return Err(format!("{given} of 400 tokens were given"));
        }
        let urgent = std::thread::scope(|scope| {
            let short = json!({"max_tokens": 2, "logprobs": null});
            let urgent = scope.spawn(move || complete(server, &short));
            wait_until("the urgent one waits", PATIENCE, || {
                server.metric("oarlock_num_requests_waiting") >= 1.0
            });
            drop(stopped);
            urgent.join().unwrap()
        });
        assert_eq!(ids(&urgent["choices"][0]), ids(&alone["choices"][0])[..2]);
        assert_eq!(counts().0, preemptions + 1.0);
        events.extend(stream.map(|event| event.expect("it goes on")));
        Ok(events)
    });
    let text: String = events
        .iter()
        .filter_map(|event| serde_json::from_str::<Value>(event).ok())
        .map(|event| event["choices"][0]["text"].as_str().unwrap_or("").to_owned())
        .collect();
    assert_eq!(text, alone["choices"][0]["text"].as_str().unwrap());
}

#[test]
fn options_mean_what_they_say() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("tiny.gguf");
    TinyModel::default().write(&model).unwrap();
    let options = ServerOptions::new(&model).args(["--served-name", "tiny", "--threads", "1"]);
    let server = Server::start(&options).unwrap();
    penalties_and_biases(&server);
    masks(&server);
    choices_and_prompts(&server);
    prompts_and_their_scores(&server);
    open_last_messages(&server);
    drop(server);
    let one_slot = options.args(["--max-seqs", "1", "--kv-cache-tokens", "512", PATIENT]);
    urgent_requests_go_first(&Server::start(&one_slot).unwrap());
}
