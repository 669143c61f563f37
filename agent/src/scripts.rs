//! Shell scripts in the place of programs, for tests.

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

/// Writes a script that can be run at once.
///
/// Another process writes it: a file that somebody has open to write cannot be run, and what this process has open, a process that
/// another test starts at this moment has open, too, until it has become its program.
pub(crate) fn write(path: &Path, script: &str) {
    let mut writer = Command::new("/bin/sh")
        .args(["-c", "cat > \"$1\" && chmod 755 \"$1\"", "sh"])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    writeln!(writer.stdin.take().unwrap(), "#!/bin/sh\n{script}").unwrap();
    assert!(writer.wait().unwrap().success(), "{} cannot be written", path.display());
}
