//! The programs under test, built once with the profile of the running test.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use crate::dirs;

/// Where the three programs are; builds them at the first call.
///
/// `NIGHTSHIFT_BIN_DIR` names a directory with programs built elsewhere, which are then used as they are.
///
/// # Panics
/// When they do not build.
pub fn dir() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| match env::var_os("NIGHTSHIFT_BIN_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => build(),
    })
}

/// The path of `clusterd`, `cluster-agent` or `clusterctl`.
#[must_use]
pub fn path(name: &str) -> PathBuf {
    dir().join(name)
}

fn build() -> PathBuf {
    let profile_dir = dirs::profile_dir();
    let profile = match profile_dir.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let status = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--workspace", "--bins", "--quiet", "--profile", profile])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .env("CARGO_TARGET_DIR", dirs::target_dir())
        .status()
        .expect("cargo can be started");
    assert!(status.success(), "the programs under test do not build: cargo ended with {status}");
    profile_dir
}
