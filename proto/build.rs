//! Compiles `nightshift/v1/*.proto` with protox, a compiler written in Rust, so that a fresh machine needs no `protoc`.

use std::{env, fs, path::PathBuf};

use prost::Message as _;

const FILES: [&str; 3] =
    ["nightshift/v1/common.proto", "nightshift/v1/agent.proto", "nightshift/v1/control.proto"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for file in FILES {
        println!("cargo::rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("nightshift_descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        // Row requests and result bodies are passed through, never edited: shared bytes save a copy of each.
        .bytes(".nightshift.v1.Row.request")
        .bytes(".nightshift.v1.RowResult.body")
        .bytes(".nightshift.v1.SubmitChunk.data")
        .bytes(".nightshift.v1.ResultsChunk.data")
        .compile_fds(descriptors)?;
    Ok(())
}
