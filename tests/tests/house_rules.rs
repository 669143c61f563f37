//! Rules of the house that no compiler or linter checks.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Modules that take time as an argument and give effects as values. Nothing in them may look at the world.
const PURE: [&str; 4] = ["daemon/src/model", "daemon/src/fit", "daemon/src/planner", "daemon/src/recovery"];

/// What reaches out: clocks, the system, the runtime, chance.
const WORLD: [&str; 22] = [
    "Instant::now",
    "SystemTime::now",
    "Timestamp::now",
    "Zoned::now",
    "TimeZone::get",
    "TimeZone::system",
    "TimeZone::try_system",
    ".elapsed()",
    "std::fs",
    "std::net",
    "std::env",
    "std::process",
    "std::thread",
    "std::io::",
    "fs::File",
    "tokio::",
    "tonic::",
    "sled::",
    "nix::",
    "rand::",
    "getrandom",
    "tracing::",
];

/// Modules that the pure ones must not know, whatever these do.
const OUTSIDE: [&str; 4] = ["crate::driver", "crate::ledger", "crate::rpc", "crate::config"];

/// Texts that name one machine or one workplace, and so have no place in the tree. Cut in two, so that this file is
/// not its own first finding.
const MACHINES: [(&str, &str); 4] =
    [("/work", "/main"), ("/work", "/shared"), ("/root", "/"), ("/tmp", "/lab")];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate is inside the workspace").to_owned()
}

/// Files below a folder with one of these endings, build output and hidden folders left out.
fn files(dir: &Path, endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(next) = open.pop() {
        let Ok(entries) = fs::read_dir(&next) else { continue };
        for entry in entries.flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if path.is_dir() {
                if name != "target" && !name.starts_with(".git") && name != "__pycache__" {
                    open.push(path);
                }
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Lines of a source file that are code: comments, and the tests at the end of the file, are left out.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .take_while(|(_, line)| !line.starts_with("#[cfg(test)]"))
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
        .map(|(index, line)| (index + 1, line))
}

fn assert_none(what: &str, found: &[String]) {
    assert!(found.is_empty(), "{what}:\n{}", found.join("\n"));
}

#[test]
fn pure_cores_do_not_look_at_the_world() {
    let mut found = Vec::new();
    let mut looked_at = 0;
    for folder in PURE {
        for path in files(&root().join(folder), &[".rs"]) {
            if path
                .strip_prefix(root())
                .is_ok_and(|path| path.components().any(|part| part.as_os_str() == "tests"))
            {
                continue;
            }
            looked_at += 1;
            let text = fs::read_to_string(&path).expect("a source file can be read");
            for (number, line) in code_lines(&text) {
                for forbidden in WORLD.iter().chain(&OUTSIDE) {
                    if line.contains(forbidden) {
                        found.push(format!("{}:{number}: {forbidden}", path.display()));
                    }
                }
            }
        }
    }
    assert!(looked_at > 5, "the pure modules are where this test looks for them");
    assert_none("pure modules take time and the world as arguments", &found);
}

#[test]
fn every_source_file_says_what_it_is_for() {
    let mut found = Vec::new();
    for path in files(&root(), &[".rs"]) {
        let text = fs::read_to_string(&path).expect("a source file can be read");
        let generated = path.components().any(|part| part.as_os_str() == "snapshots");
        if !generated && !text.trim_start().starts_with("//!") {
            found.push(path.display().to_string());
        }
    }
    assert_none("files without module docs at their top", &found);
}

#[test]
fn no_file_names_the_machine_it_was_written_on() {
    let mut found = Vec::new();
    for path in files(&root(), &[".rs", ".py", ".proto", ".toml", ".md", ".plist", ".sh", "run"]) {
        let text = fs::read_to_string(&path).unwrap_or_default();
        for (number, line) in text.lines().enumerate() {
            for (head, tail) in MACHINES {
                if line.contains(&format!("{head}{tail}")) {
                    found.push(format!("{}:{}: {head}{tail}", path.display(), number + 1));
                }
            }
        }
    }
    assert_none("paths of one machine", &found);
}

#[test]
fn every_dependency_has_its_features_named_once() {
    let mut found = Vec::new();
    for krate in ["proto", "daemon", "agent", "ctl", "tests"] {
        let path = root().join(krate).join("Cargo.toml");
        let text = fs::read_to_string(&path).expect("a manifest can be read");
        let mut in_dependencies = false;
        for (number, line) in text.lines().enumerate() {
            if line.starts_with('[') {
                in_dependencies = line.contains("dependencies");
            } else if in_dependencies && line.contains('=') && !line.contains("workspace = true") {
                found.push(format!("{}:{}: {line}", path.display(), number + 1));
            }
        }
    }
    assert_none("dependencies that do not come from [workspace.dependencies]", &found);
}
