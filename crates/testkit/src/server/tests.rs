//! Starting and stopping, with a shell in place of the server and its port played here.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::process::Command;
use std::thread;
use std::time::Duration;

use super::Server;

const TIMEOUT: Duration = Duration::from_secs(20);

/// A port that answers 503 once, then 200 with a scrape, as long as the test runs.
fn play_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    thread::spawn(move || {
        let metrics = "oarlock_worker_info{rank=\"0\",pid=\"123\"} 1\noarlock_blocks 5\noarlock_engine_ready 1\n";
        for (index, stream) in listener.incoming().enumerate() {
            let mut stream = stream.expect("a client");
            let _ = stream.read(&mut [0; 1024]).expect("a request");
            let status = if index == 0 { "503 Service Unavailable" } else { "200 OK" };
            let length = metrics.len();
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{metrics}");
            stream.write_all(answer.as_bytes()).expect("sent");
        }
    });
    port
}

fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

#[test]
fn a_server_is_started_read_and_stopped() {
    let port = play_port();
    let script =
        format!("echo loading >&2; echo listening on http://127.0.0.1:{port}; exec sleep 60");
    let server = Server::start_command(shell(&script), TIMEOUT).expect("ready");
    assert_eq!(server.url(), format!("http://127.0.0.1:{port}"));
    assert_eq!(server.worker_pids(), [123]);
    assert_eq!(server.metric("oarlock_blocks").to_bits(), 5.0_f64.to_bits());
    server.wait_for_log("loading");
    let pid = server.pid();
    assert!(crate::resident_bytes(pid).is_some());
    let status = server.stop(TIMEOUT);
    assert!(!status.success(), "sleep dies by the signal: {status}");
    assert_eq!(crate::resident_bytes(pid), None);
}

#[test]
fn a_server_that_will_not_stop_is_killed() {
    let port = play_port();
    let script = format!(
        "trap '' TERM; echo listening on http://127.0.0.1:{port}; while :; do sleep 1; done"
    );
    let mut server = Server::start_command(shell(&script), TIMEOUT).expect("ready");
    server.signal(super::Signal::TERM);
    assert!(server.wait_for_exit(Duration::from_millis(100)).is_none());
    server.signal(super::Signal::KILL);
    assert!(server.wait_for_exit(TIMEOUT).is_some());
}

#[test]
fn a_server_that_fails_tells_why() {
    let error = Server::start_command(shell("echo no such model >&2; exit 3"), TIMEOUT);
    let error = error.err().expect("it failed").to_string();
    assert!(error.contains("no such model"), "{error}");
    let error = Server::start_command(shell("exec sleep 60"), Duration::from_millis(50));
    let error = error.err().expect("it is late").to_string();
    assert!(error.contains("in time"), "{error}");
}
