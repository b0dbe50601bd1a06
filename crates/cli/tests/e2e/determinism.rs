//! The same sixteen requests give the same bits on every instruction set of this machine, all at once and,
//! where that is quick, alone. What else they must not depend on is in `contract.rs`.

use oarlock_testkit::{Server, ServerOptions};
use oarlock_worker::InstructionSet;
use serde_json::Value;

use crate::requests::{Answer, ask, ask_all_at_once, sixteen};
use crate::turn;

#[test]
fn sixteen_requests_have_the_same_bits_everywhere() {
    let Some((_turn, model)) = turn() else { return };
    let requests = sixteen();
    let mut all: Vec<(String, Vec<Answer>)> = Vec::new();
    for instruction_set in InstructionSet::available() {
        let name = instruction_set.to_string();
        let options = ServerOptions::new(&model).args(["--served-name", "demo"]);
        let server = Server::start(&options.args(["--instruction-set", &name])).unwrap();
        // A few, and once, are enough where each takes its time.
        let is_slow = instruction_set == InstructionSet::Portable;
        let requests = if is_slow { &requests[..4] } else { &requests[..] };
        let at_once = ask_all_at_once(&server, requests);
        if !is_slow {
            // The alone-runs come second, so that the prefix cache is warm for them and cold above.
            let alone: Vec<_> = requests.iter().map(|request| ask(&server, request)).collect();
            compare(&format!("{name}, all at once against alone"), requests, &alone, &at_once);
        }
        all.push((name, at_once));
    }
    let most = all.iter().map(|(_, answers)| answers).max_by_key(|answers| answers.len());
    let most = most.expect("portable is always there");
    for (name, answers) in &all {
        let len = answers.len();
        compare(&format!("{name}, against others"), &requests[..len], &most[..len], answers);
    }
}

fn compare(what: &str, requests: &[Value], expected: &[Answer], found: &[Answer]) {
    assert_eq!(expected.len(), found.len(), "{what}");
    for (index, (expected, found)) in expected.iter().zip(found).enumerate() {
        assert_eq!(expected, found, "{what}: request {index}: {}", requests[index]);
    }
    eprintln!("{what}: {} answers with the same bits", found.len());
}
