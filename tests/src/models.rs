//! Tiny models with random weights and a real tokenizer, made by the agent's own maker and kept below the build
//! directory: real loading code and real generation, and nothing to download.

use std::{
    fs::{self, File},
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::Command,
};

use crate::{binaries, dirs, runtime};

/// The shapes the maker knows.
pub const ARCHITECTURES: [&str; 6] = ["llama", "qwen3", "qwen3_moe", "gpt_oss", "deepseek_v3", "glm4_moe"];

/// The maker's source: its content names the cache, so that a changed maker makes new models.
const MAKER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../agent/src/worker/tiny_model.py");

/// A llama whose greedy answers are the same however rows are batched, staggered or resumed (float32; FIELD-NOTES 1).
#[must_use]
pub fn llama() -> PathBuf {
    tiny("llama", &["--dtype", "float32"])
}

/// A model of this shape; `options` go to the maker as they are.
///
/// # Panics
/// When it cannot be made.
#[must_use]
pub fn tiny(architecture: &str, options: &[&str]) -> PathBuf {
    let name = format!("{architecture}{}", options.concat().replace("--", "-"));
    let shelf = dirs::cache_dir().join(format!("models-{:016x}", maker_hash()));
    let model = shelf.join(&name);
    if model.join("config.json").exists() {
        return model;
    }
    let runtime = runtime::ensure();
    fs::create_dir_all(&shelf).expect("a directory for models can be made");
    let lock = File::create(shelf.join(format!("{name}.lock"))).expect("a lock file can be made");
    lock.lock().expect("a lock file can be locked");
    if !model.join("config.json").exists() {
        // Made aside and moved: a model that is there is whole.
        let half = shelf.join(format!("{name}.half"));
        let _ = fs::remove_dir_all(&half);
        make(&runtime.dir, architecture, options, &half);
        fs::rename(&half, &model).expect("a finished model can be moved to its place");
    }
    model
}

fn make(runtime_dir: &Path, architecture: &str, options: &[&str], out: &Path) {
    let output = Command::new(binaries::path("cluster-agent"))
        .args(["runtime", "tiny-model", "--arch", architecture, "--out"])
        .arg(out)
        .args(options)
        .env("NIGHTSHIFT_RUNTIME_DIR", runtime_dir)
        .output()
        .expect("cluster-agent can be started");
    assert!(
        output.status.success(),
        "no tiny {architecture} model: cluster-agent ended with {}:\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

fn maker_hash() -> u64 {
    let source = fs::read(MAKER).unwrap_or_default();
    let mut hasher = DefaultHasher::new();
    source.hash(&mut hasher);
    hasher.finish()
}
