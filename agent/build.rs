//! Lists the worker's Python files, so that the binary carries every one of them without their names being known here.

use std::{env, error::Error, fmt::Write as _, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let dir = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("src/worker");
    println!("cargo::rerun-if-changed=src/worker");

    let mut names = Vec::new();
    for entry in fs::read_dir(&dir)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        // Tests of the worker live beside it and are of no use to a running one.
        if name.ends_with(".py") && !name.starts_with("test_") {
            names.push(name);
        }
    }
    names.sort();

    let mut table = String::from("&[\n");
    for name in &names {
        writeln!(table, "    ({name:?}, include_str!({:?})),", dir.join(name).display().to_string())?;
    }
    table.push_str("]\n");
    fs::write(PathBuf::from(env::var("OUT_DIR")?).join("worker_files.rs"), table)?;
    Ok(())
}
