//! Keys: added, used and revoked while a server runs.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use oarlock_testkit::{Response, Server, ServerOptions, TinyModel, binary, wait_until};
use serde_json::{Value, json};

/// A server notices a change within a second or two; a busy machine may take longer.
const NOTICED: Duration = Duration::from_secs(10);

fn oarlock_keys(file: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(binary());
    command.arg("keys").args(arguments).env("OARLOCK_KEYS", file);
    command.output().unwrap()
}

/// Adds a key; its secret.
fn add(file: &Path, arguments: &[&str]) -> String {
    let output = oarlock_keys(file, &[&["add"], arguments].concat());
    assert!(output.status.success(), "{output:?}");
    let secret = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    assert!(secret.starts_with("oar_"), "{secret}");
    assert!(!String::from_utf8(output.stderr).unwrap().contains(&secret));
    secret
}

/// The id of the key that was added last.
fn last_id(file: &Path) -> String {
    let output = oarlock_keys(file, &["list", "--json"]);
    let list: Value = serde_json::from_slice(&output.stdout).unwrap();
    let keys = list["keys"].as_array().unwrap();
    keys.last().unwrap()["id"].as_str().unwrap().to_owned()
}

fn start(folder: &Path, keys: &Path) -> Server {
    let model = folder.join("tiny.gguf");
    TinyModel::default().write(&model).unwrap();
    let options = ServerOptions::new(model).args(["--served-name", "tiny", "--threads", "1"]);
    Server::start(&options.args(["--keys", keys.to_str().unwrap()])).unwrap()
}

fn status(server: &Server, path: &str, key: &str) -> u16 {
    let authorization = format!("Bearer {key}");
    let headers = [("Authorization", authorization.as_str())];
    let headers = if key.is_empty() { &headers[..0] } else { &headers[..] };
    server.client().request("GET", path, headers, b"").unwrap().status
}

fn complete(server: &Server, key: &str, prompt: &str, max_tokens: u32) -> Response {
    let body =
        json!({"model": "tiny", "prompt": prompt, "max_tokens": max_tokens, "ignore_eos": true});
    let authorization = format!("Bearer {key}");
    let headers = [("Authorization", authorization.as_str()), ("Content-Type", "application/json")];
    let body = body.to_string();
    server.client().request("POST", "/v1/completions", &headers, body.as_bytes()).unwrap()
}

fn folder_and_file() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.toml");
    (folder, file)
}

#[test]
fn a_change_keeps_the_servers_group_and_says_whom_it_shuts_out() {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys.toml");
    add(&keys, &["--tenant", "a"]);
    let mode = || fs::metadata(&keys).unwrap().permissions().mode() & 0o777;
    for (before, after, is_noted) in
        [(0o600, 0o600, false), (0o640, 0o640, false), (0o644, 0o640, true)]
    {
        fs::set_permissions(&keys, fs::Permissions::from_mode(before)).unwrap();
        let output = oarlock_keys(&keys, &["add", "--tenant", "b"]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((mode(), said.contains("chgrp GROUP /")), (after, is_noted), "{said}");
    }
}

#[test]
fn keys_come_and_go_while_a_server_runs() {
    let (folder, file) = folder_and_file();
    fs::write(&file, "version = 1\n").unwrap();
    let server = start(folder.path(), &file);
    assert_eq!(status(&server, "/v1/models", ""), 200, "there is no key yet");
    let first = add(&file, &["--tenant", "acme", "--name", "first"]);
    let first_id = last_id(&file);
    wait_until("a key is demanded", NOTICED, || status(&server, "/v1/models", "") == 401);
    for path in ["/v1/models", "/metrics", "/version", "/tokenize", "/nothing", "/"] {
        assert_eq!(status(&server, path, ""), 401, "{path}");
        assert_eq!(status(&server, path, "oar_wrong"), 401, "{path}");
        assert_ne!(status(&server, path, &first), 401, "{path}");
    }
    assert_eq!((status(&server, "/health", ""), status(&server, "/ready", "")), (200, 200));
    assert_eq!(complete(&server, &first, "hello", 3).status, 200);
    assert_eq!(complete(&server, "", "hello", 3).status, 401);

    let second = add(&file, &["--tenant", "acme", "--expires", "1h"]);
    wait_until("the second is known", NOTICED, || status(&server, "/v1/models", &second) == 200);
    assert!(oarlock_keys(&file, &["revoke", &first_id]).status.success());
    wait_until("the first is revoked", NOTICED, || status(&server, "/v1/models", &first) == 401);
    assert_eq!(status(&server, "/v1/models", &second), 200);
    let list = String::from_utf8(oarlock_keys(&file, &["list"]).stdout).unwrap();
    assert!(
        list.lines().any(|line| line.contains(&first_id) && line.contains("revoked")),
        "{list}"
    );
    assert!(!oarlock_keys(&file, &["revoke", "k_none"]).status.success());

    // A file that breaks, or is gone, changes nothing.
    fs::write(&file, "version = 1\n[[keys]]\n").unwrap();
    wait_until("the log says so", NOTICED, || server.log().contains("keys.toml, line 2"));
    assert_eq!((status(&server, "/version", ""), status(&server, "/version", &second)), (401, 200));
    fs::remove_file(&file).unwrap();
    wait_until("the log says so", NOTICED, || server.log().contains("there is no keys file"));
    assert_eq!((status(&server, "/version", ""), status(&server, "/version", &second)), (401, 200));
    assert_eq!(server.log().matches("there is no keys file").count(), 1);
    assert!(!server.log().contains(&first[4..]) && !server.log().contains(&second[4..]));
}

#[test]
fn a_key_has_its_quota() {
    let (folder, file) = folder_and_file();
    let few = add(&file, &["--tenant", "few", "--requests-per-minute", "2"]);
    let little = add(&file, &["--tenant", "little", "--tokens-per-minute", "20"]);
    let plenty = add(&file, &["--tenant", "plenty"]);
    let server = start(folder.path(), &file);
    for _ in 0..2 {
        assert_eq!(complete(&server, &few, "hello", 3).status, 200);
    }
    let refused = complete(&server, &few, "hello", 3);
    assert_eq!(refused.status, 429, "{}", refused.text());
    let seconds: u32 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=30).contains(&seconds), "{seconds}");
    assert_eq!(refused.json()["error"]["code"], "rate_limit_exceeded");
    // What a request costs is known at its end: it may overdraw, once.
    assert_eq!(complete(&server, &little, "hello", 30).status, 200);
    let refused = complete(&server, &little, "hello", 3);
    assert_eq!(refused.status, 429, "{}", refused.text());
    assert!(refused.text().contains("tokens per minute"), "{}", refused.text());
    assert_eq!(complete(&server, &plenty, "hello", 3).status, 200, "others are not concerned");
}

#[test]
fn tenants_share_no_cache() {
    let (folder, file) = folder_and_file();
    let [one, other] = [0, 1].map(|_| add(&file, &["--tenant", "acme"]));
    let stranger = add(&file, &["--tenant", "umbrella"]);
    let server = start(folder.path(), &file);
    let prompt = "the same long beginning, over and over ".repeat(4);
    let cached_tokens = |key: &str| {
        let body = complete(&server, key, &prompt, 2).ok_json();
        body["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    };
    assert_eq!(cached_tokens(&one), 0);
    assert!(cached_tokens(&one) >= 16, "its own prompt is not cached");
    assert!(cached_tokens(&other) >= 16, "keys of one tenant share its cache");
    assert_eq!(cached_tokens(&stranger), 0, "another tenant's prompt could be guessed");
    assert!(cached_tokens(&stranger) >= 16);
}

#[test]
fn a_start_with_a_file_that_cannot_be_used_fails() {
    let (folder, file) = folder_and_file();
    let model = folder.path().join("tiny.gguf");
    TinyModel::default().write(&model).unwrap();
    let start = || {
        let mut command = Command::new(binary());
        command.args(["serve", "--port", "0", "--model"]).arg(&model).arg("--keys").arg(&file);
        let output = command.output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let message = start();
    assert!(message.contains("keys.toml") && message.contains("oarlock keys add"), "{message}");
    fs::write(&file, "version = 1\nkeyz = 1\n").unwrap();
    let message = start();
    assert!(message.contains("line 2") && message.contains("keyz"), "{message}");
}
