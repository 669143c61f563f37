//! A directory with a copy of clusterctl and programs that are not what they seem.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tempfile::TempDir;

pub(crate) struct Bench {
    dir: TempDir,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let copied =
            Command::new("cp").arg(env!("CARGO_BIN_EXE_clusterctl")).arg(dir.path()).status().unwrap();
        assert!(copied.success());
        fs::create_dir(dir.path().join("tmp")).unwrap();
        Bench { dir }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Written by another process, as the copy is: a descriptor of ours that is open for writing would go along with a
    /// process that another test starts meanwhile, and the program would be "busy".
    pub(crate) fn program(&self, name: &str, script: &str) {
        let mut writer = Command::new("sh")
            .args(["-c", r#"cat > "$0" && chmod 755 "$0""#])
            .arg(self.dir.path().join(name))
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        writer.stdin.take().unwrap().write_all(format!("#!/bin/sh\n{script}\n").as_bytes()).unwrap();
        assert!(writer.wait().unwrap().success());
    }

    /// The copy of clusterctl, which finds these programs beside it and none of ours in PATH.
    pub(crate) fn clusterctl(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.dir.path().join("clusterctl"));
        command
            .args(args)
            .current_dir(self.dir.path())
            .env_clear()
            .env("TMPDIR", self.tmp())
            // The scripts need a few tools; there is no clusterd among them.
            .env("PATH", "/usr/bin:/bin")
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn tmp(&self) -> PathBuf {
        self.dir.path().join("tmp")
    }

    pub(crate) fn left_in_tmp(&self) -> usize {
        fs::read_dir(self.tmp()).unwrap().count()
    }
}
