//! Logs of the programs: their end for a failure's message, and the search for lines that should not be there.

use std::{fs, path::Path};

/// The last lines of a file, or why it could not be read.
#[must_use]
pub fn tail(path: &Path, lines: usize) -> String {
    match fs::read(path) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let all: Vec<&str> = text.lines().collect();
            all[all.len().saturating_sub(lines)..].join("\n")
        }
        Err(error) => format!("({} cannot be read: {error})", path.display()),
    }
}

/// The ends of all logs below `dir`, each under its name.
#[must_use]
pub fn tails(dir: &Path, lines: usize) -> String {
    let mut text = String::new();
    for (name, path) in files(dir) {
        text.push_str(&format!("--- {name}\n{}\n", tail(&path, lines)));
    }
    text
}

/// Lines of warnings, errors and panics in the logs below `dir` that hold none of the `allowed` texts, each with the
/// name of its file.
#[must_use]
pub fn unexpected(dir: &Path, allowed: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    for (name, path) in files(dir) {
        let Ok(bytes) = fs::read(&path) else { continue };
        for line in String::from_utf8_lossy(&bytes).lines() {
            if is_trouble(line) && !allowed.iter().any(|text| line.contains(text.as_str())) {
                found.push(format!("{name}: {line}"));
            }
        }
    }
    found
}

/// Whether a line in the format of `tracing_subscriber::fmt` has level WARN or ERROR, or reports a panic. The level is
/// the first or second word, behind the time where there is one.
fn is_trouble(line: &str) -> bool {
    line.split_ascii_whitespace().take(2).any(|word| matches!(word, "WARN" | "ERROR"))
        || line.contains("panicked at")
}

/// All regular files below `dir`, with their names relative to it, sorted.
fn files(dir: &Path) -> Vec<(String, std::path::PathBuf)> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(next) = open.pop() {
        let Ok(entries) = fs::read_dir(&next) else { continue };
        for entry in entries.flatten() {
            let path = entry.path();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => open.push(path),
                Ok(kind) if kind.is_file() => {
                    let name = path.strip_prefix(dir).unwrap_or(&path).display().to_string();
                    found.push((name, path));
                }
                _ => {}
            }
        }
    }
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dirs::TestDir;

    #[test]
    fn a_warning_not_on_the_list_is_found() {
        let dir = TestDir::new("logs");
        let log = "2026-11-20T18:18:15.123456Z  INFO clusterd: nothing to WARN about\n\
                   2026-11-20T18:18:15.123456Z  WARN clusterd::driver: worker j1/e1/r0 exited\n\
                   2026-11-20T18:18:16.123456Z ERROR clusterd::driver: the disk is full\n\
                   thread 'main' panicked at src/main.rs:1:1:\n";
        fs::write(dir.sub("n1").join("agent.log"), log).expect("a test file can be written");
        let allowed = ["exited".to_owned()];
        let found = unexpected(dir.path(), &allowed);
        assert_eq!(
            found,
            [
                "n1/agent.log: 2026-11-20T18:18:16.123456Z ERROR clusterd::driver: the disk is full",
                "n1/agent.log: thread 'main' panicked at src/main.rs:1:1:"
            ]
        );
    }

    #[test]
    fn a_tail_is_the_end() {
        let dir = TestDir::new("tail");
        let path = dir.path().join("x.log");
        fs::write(&path, "a\nb\nc\n").expect("a test file can be written");
        assert_eq!(tail(&path, 2), "b\nc");
        assert!(tail(&dir.path().join("none"), 2).contains("cannot be read"));
    }
}
