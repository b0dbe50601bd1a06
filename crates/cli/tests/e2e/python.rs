//! The `openai` Python client, as users have it.

use oarlock_testkit::Server;

use crate::Scenario;

pub(crate) const SCENARIOS: &[Scenario] = &[("the openai client", openai_client)];

const SCRIPT: &str = include_str!("openai_client.py");

fn openai_client(server: &Server) {
    let Some(output) = oarlock_testkit::python(SCRIPT, &[&server.url()]) else { return };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("all checks passed"), "{text}\n{errors}");
}
