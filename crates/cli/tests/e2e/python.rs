//! Python clients as users have them: `openai`, and `grpcio` without any file of ours.

use oarlock_testkit::Server;

use crate::Scenario;

pub(crate) const SCENARIOS: &[Scenario] =
    &[("the openai client", openai_client), ("a gRPC client that knows the address", grpc_client)];

const OPENAI: &str = include_str!("openai_client.py");
const GRPC: &str = include_str!("grpc_client.py");

fn openai_client(server: &Server) {
    run(OPENAI, &[&server.url()]);
}

fn grpc_client(server: &Server) {
    run(GRPC, &[&server.grpc_address(), &server.url()]);
}

fn run(script: &str, args: &[&str]) {
    let Some(output) = oarlock_testkit::python(script, args) else { return };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("all checks passed"), "{text}\n{errors}");
}
