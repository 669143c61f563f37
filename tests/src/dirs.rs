//! Directories of tests: temporary, kept and named when the test fails, and outside of the source tree.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

/// The directory of one test.
#[derive(Debug)]
pub struct TestDir {
    path: PathBuf,
    keep: bool,
}

impl TestDir {
    /// A fresh directory, named after the test.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn new(test: &str) -> Self {
        let path = tempfile::Builder::new()
            .prefix(&format!("nightshift-{test}-"))
            .tempdir()
            .expect("a temporary directory can be made")
            .keep();
        // /proc shows paths with links resolved, and processes are recognised by this path.
        let path = path.canonicalize().unwrap_or(path);
        Self { path, keep: env::var_os("NIGHTSHIFT_KEEP").is_some() }
    }

    /// A directory that stays, and that the next run of the test finds again.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn at(path: &Path) -> Self {
        fs::create_dir_all(path).expect("the test's directory can be made");
        Self { path: path.canonicalize().expect("a directory that was made has a path"), keep: true }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A directory inside, made if missing.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn sub(&self, name: &str) -> PathBuf {
        let path = self.path.join(name);
        fs::create_dir_all(&path).expect("a directory can be made inside the test directory");
        path
    }

    /// Keeps it for a person to look at.
    pub fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        if self.keep || std::thread::panicking() {
            eprintln!("kept: {}", self.path.display());
        } else {
            // A leftover in the temporary directory harms nobody; a failure to remove it is not the test's.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// The build directory (`target`), found from the running test's own executable.
///
/// # Panics
/// When the executable is not where cargo puts it.
#[must_use]
pub fn target_dir() -> PathBuf {
    profile_dir().parent().expect("the profile's directory is inside the build directory").to_owned()
}

/// The profile's part of the build directory, for example `target/debug`: where the programs are.
///
/// # Panics
/// When the executable is not where cargo puts it.
#[must_use]
pub fn profile_dir() -> PathBuf {
    let executable = env::current_exe().expect("a process knows its executable");
    let deps = executable.parent().expect("an executable is in a directory");
    assert!(
        deps.ends_with("deps"),
        "{} is not in a cargo build directory; start tests through cargo",
        executable.display()
    );
    deps.parent().expect("deps is inside the profile's directory").to_owned()
}

/// A place for what is made once and used by many test runs, below the build directory.
///
/// # Panics
/// When it cannot be made.
#[must_use]
pub fn cache_dir() -> PathBuf {
    let path = target_dir().join("tmp").join("nightshift");
    fs::create_dir_all(&path).expect("a directory can be made in the build directory");
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_directory_goes_with_its_test() {
        let dir = TestDir::new("dirs");
        let inside = dir.sub("a/b");
        assert!(inside.is_dir());
        let path = dir.path().to_owned();
        drop(dir);
        assert!(!path.exists() || env::var_os("NIGHTSHIFT_KEEP").is_some());
    }

    #[test]
    fn the_build_directory_is_found() {
        assert!(profile_dir().join("deps").is_dir());
        assert!(profile_dir().starts_with(target_dir()));
    }
}
