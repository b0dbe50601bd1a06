//! Compiles `proto/` with protox, so that no `protoc` is needed.

use std::path::PathBuf;

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../proto");
    println!("cargo::rerun-if-changed={}", root.display());
    let internal = ["oarlock/internal/v1/worker.proto", "oarlock/internal/v1/engine.proto"];
    tonic_prost_build::configure().compile_fds(protox::compile(internal, [&root])?)?;
    let public = protox::compile(["oarlock/v1/inference.proto"], [&root])?;
    // For reflection: a client that knows only the address asks for the descriptors.
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("oarlock.v1.bin"), public.encode_to_vec())?;
    tonic_prost_build::configure().build_client(false).compile_fds(public)?;
    Ok(())
}
