//! Ranks in two network namespaces, which count as two hosts: over TCP, with the demo model, and with
//! the network cut in between. Where root and iproute2 are missing, over TCP on the loopback.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::Duration;

use oarlock_testkit::{PATIENCE, Server, ServerOptions, wait_until};
use serde_json::{Value, json};

use crate::turn;

/// Two namespaces and the wire between them; they go with this.
struct Namespaces {
    prefix: String,
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(arguments).output().map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr)))
}

impl Namespaces {
    fn new() -> Result<Self, String> {
        let this = Self { prefix: format!("oar{}-", std::process::id()) };
        let [first, second] = this.names();
        ip(&["netns", "add", &first])?;
        ip(&["netns", "add", &second])?;
        let peer = ["peer", "name", "wire1", "netns", &second];
        let wire = ["-n", &first, "link", "add", "wire0", "type", "veth"];
        ip(&[&wire[..], &peer].concat())?;
        for (rank, name) in [&first, &second].into_iter().enumerate() {
            let device = format!("wire{rank}");
            let address = format!("10.213.7.1{rank}/24");
            ip(&["-n", name, "address", "add", &address, "dev", &device])?;
            ip(&["-n", name, "link", "set", &device, "up"])?;
        }
        Ok(this)
    }

    fn names(&self) -> [String; 2] {
        [0, 1].map(|rank| format!("{}{rank}", self.prefix))
    }

    /// Cuts the wire, or mends it.
    fn wire(&self, state: &str) {
        ip(&["-n", &self.names()[1], "link", "set", "wire1", state]).unwrap();
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in self.names() {
            // One that was never made is no loss.
            drop(ip(&["netns", "delete", &name]));
        }
    }
}

fn request(index: u64, max_tokens: u32) -> Value {
    let prompt: Vec<u64> = (0..[5, 120, 300][index as usize % 3])
        .map(|at| 1000 + (at * 7919 + index * 31) % 90_000)
        .collect();
    json!({
        "model": "m", "prompt": prompt, "max_tokens": max_tokens, "temperature": index % 2,
        "seed": index, "logprobs": 3, "return_token_ids": true, "ignore_eos": true,
    })
}

/// Token ids, and logprobs written so that they tell every bit.
fn answer(server: &Server, request: &Value) -> [Value; 2] {
    let body = server.post("/v1/completions", request).ok_json();
    let choice = &body["choices"][0];
    [choice["token_ids"].clone(), choice["logprobs"]["token_logprobs"].clone()]
}

#[test]
fn ranks_of_two_hosts_give_the_bits_of_one() {
    let Some((_turn, model)) = turn() else { return };
    let namespaces = Namespaces::new();
    let requests: Vec<_> = (0..6).map(|index| request(index, 30)).collect();
    let serve = |arguments: &[&str]| {
        let options = ServerOptions::new(&model).args(["--served-name", "m"]);
        Server::start(&options.args(arguments.iter().copied())).unwrap()
    };
    let alone = serve(&[]);
    let expected: Vec<_> = requests.iter().map(|request| answer(&alone, request)).collect();
    drop(alone);

    let namespaces = match namespaces {
        Ok(namespaces) => namespaces,
        Err(reason) => {
            eprintln!("no network namespaces here (root and iproute2 are needed): {reason}");
            eprintln!("skipped: two hosts and a cut between them; the loopback is tested instead");
            let server = serve(&["--tensor-parallel", "2", "--collective", "tcp"]);
            let found: Vec<_> = requests.iter().map(|request| answer(&server, request)).collect();
            assert!(found == expected, "two ranks over TCP give other bits than one");
            return;
        }
    };
    let prefix = &namespaces.prefix;
    let launcher =
        format!("ip netns exec {prefix}{{rank}} env OARLOCK_COLLECTIVE_HOST=10.213.7.1{{rank}}");
    let server =
        serve(&["--tensor-parallel", "2", "--worker-launcher", &launcher, "--stall-seconds", "4"]);
    let network = |pid: &u32| fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    let networks: Vec<_> = server.worker_pids().iter().map(network).collect();
    assert_ne!(networks[0], networks[1], "each rank has a network of its own");
    let found: Vec<_> = requests.iter().map(|request| answer(&server, request)).collect();
    assert!(found == expected, "two hosts give other bits than one");

    let restarts = || server.metric("oarlock_worker_restarts_total");
    let generated = server.metric("oarlock_generation_tokens_total");
    let found: Vec<_> = thread::scope(|scope| {
        let server = &server;
        let asking: Vec<_> =
            requests.iter().map(|request| scope.spawn(move || answer(server, request))).collect();
        wait_until("answers have begun", PATIENCE, || {
            server.metric("oarlock_generation_tokens_total") > generated + 12.0
        });
        namespaces.wire("down");
        wait_until("the loss is found", Duration::from_secs(20), || restarts() > 0.0);
        namespaces.wire("up");
        asking.into_iter().map(|asking| asking.join().expect("an answer")).collect()
    });
    assert!(found == expected, "a cut network changed an answer: {}", server.log());
}
