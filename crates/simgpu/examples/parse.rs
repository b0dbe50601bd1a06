//! Parses PTX files and names every instruction that is not known: `cargo run --example parse FILE…`.
#![expect(clippy::print_stdout, reason = "a program that reports")]

use oarlock_simgpu::Module;

fn main() {
    for path in std::env::args().skip(1) {
        let Ok(mut text) = std::fs::read_to_string(&path) else {
            println!("{path}: cannot be read");
            continue;
        };
        // Each unknown instruction is taken out, so that the next one is found.
        for _ in 0..1000 {
            match Module::parse(&text) {
                Ok(module) => {
                    println!("{path}: {} kernels", module.entries().count());
                    break;
                }
                Err(error) => {
                    println!("{path}:{error}");
                    if error.text.is_empty() || !text.contains(&error.text) {
                        break;
                    }
                    text = text.replacen(&error.text, "", 1);
                }
            }
        }
    }
}
