//! Logs of the programs: their end for a failure's message, the search for lines of trouble, and which of them a case
//! expects.

use std::{fs, path::Path};

/// What a case expects of the logs. Texts are patterns of [`matches`].
#[derive(Clone, Debug, Default)]
pub struct Expected {
    /// Warnings and errors that must be there.
    pub must: Vec<String>,
    /// Those that may be there.
    pub may: Vec<String>,
}

impl Expected {
    /// What is there and should not, and what is not there and should.
    #[must_use]
    pub fn problems(&self, trouble: &[String]) -> Vec<String> {
        let expected =
            |line: &String| self.must.iter().chain(&self.may).any(|pattern| matches(line, pattern));
        let missing = |pattern: &&String| !trouble.iter().any(|line| matches(line, pattern));
        let unexpected = trouble.iter().filter(|line| !expected(line)).cloned();
        unexpected
            .chain(self.must.iter().filter(missing).map(|pattern| format!("nothing like: {pattern}")))
            .collect()
    }
}

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

/// Lines of warnings, errors and panics in the logs below `dir`, each with the name of its file.
#[must_use]
pub fn trouble(dir: &Path) -> Vec<String> {
    lines(dir, is_trouble)
}

/// Lines of the logs below `dir` that hold a pattern (see [`matches`]), each with the name of its file.
#[must_use]
pub fn matching(dir: &Path, pattern: &str) -> Vec<String> {
    lines(dir, |line| matches(line, pattern))
}

fn lines(dir: &Path, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for (name, path) in files(dir) {
        let Ok(bytes) = fs::read(&path) else { continue };
        let text = String::from_utf8_lossy(&bytes);
        found.extend(text.lines().filter(|line| wanted(line)).map(|line| format!("{name}: {line}")));
    }
    found
}

/// Whether a line holds the pattern's pieces, which a `*` separates, one behind the other.
#[must_use]
pub fn matches(line: &str, pattern: &str) -> bool {
    let mut rest = line;
    pattern.split('*').all(|piece| match rest.find(piece) {
        Some(start) => {
            rest = &rest[start + piece.len()..];
            true
        }
        None => false,
    })
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
    fn warnings_errors_and_panics_are_trouble() {
        let dir = TestDir::new("logs");
        let log = "2026-11-20T18:18:15.123456Z  INFO clusterd: nothing to WARN about\n\
                   2026-11-20T18:18:15.123456Z  WARN clusterd::driver: worker j1/e1/r0 exited\n\
                   2026-11-20T18:18:16.123456Z ERROR clusterd::driver: the disk is full\n\
                   thread 'main' panicked at src/main.rs:1:1:\n";
        fs::write(dir.sub("n1").join("agent.log"), log).expect("a test file can be written");
        assert_eq!(
            trouble(dir.path()),
            [
                "n1/agent.log: 2026-11-20T18:18:15.123456Z  WARN clusterd::driver: worker j1/e1/r0 exited",
                "n1/agent.log: 2026-11-20T18:18:16.123456Z ERROR clusterd::driver: the disk is full",
                "n1/agent.log: thread 'main' panicked at src/main.rs:1:1:"
            ]
        );
    }

    #[test]
    fn a_pattern_is_pieces_in_order() {
        let line = "WARN the worker of j1 on n2 was ended by SIGKILL kind=\"worker-exited\"";
        for pattern in ["the worker of j1", "j1 on * was ended*kind=\"worker-exited\"", ""] {
            assert!(matches(line, pattern), "{pattern}");
        }
        for pattern in ["the worker of j2", "worker-exited*j1", "j1*j1"] {
            assert!(!matches(line, pattern), "{pattern}");
        }
    }

    #[test]
    fn logs_are_judged_both_ways() {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let log = Expected { must: owned(&["a*b"]), may: owned(&["c"]) };
        assert_eq!(log.problems(&owned(&["WARN a and b", "WARN c"])), [""; 0]);
        assert_eq!(log.problems(&owned(&["WARN c", "ERROR d"])), ["ERROR d", "nothing like: a*b"]);
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
