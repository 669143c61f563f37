//! Writing small files so that after a crash either the old or the new content is there, whole.
//!
//! The recipe, in one place: write a sibling, `fsync` it, rename it over the target, `fsync` the directory. Without the
//! first sync the rename may reach the disk before the data does; without the second the rename itself may be lost. On
//! macOS the standard library's sync is `F_FULLFSYNC`, which also empties the drive's cache.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::Path,
};

/// Replaces `path` by `bytes`, durably.
///
/// # Errors
/// Whatever the file system says; the target is then untouched.
pub fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_then_rename(path, bytes, true)?;
    sync_parent(path)
}

/// Replaces `path` by `bytes` in one step, without waiting for the disk. For what need not survive a power cut.
///
/// # Errors
/// Whatever the file system says; the target is then untouched.
pub fn replace_file_lazily(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_then_rename(path, bytes, false)
}

/// Makes the entries of the directory that holds `path` durable.
///
/// # Errors
/// Whatever the file system says.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

fn write_then_rename(path: &Path, bytes: &[u8], sync: bool) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let sibling = path.with_file_name(name);
    let written = File::create(&sibling).and_then(|mut file| {
        file.write_all(bytes)?;
        if sync { file.sync_all() } else { Ok(()) }
    });
    let renamed = written.and_then(|()| fs::rename(&sibling, path));
    if renamed.is_err() {
        // Best effort: a half-written sibling would only take up room on what may be a full disk.
        let _ = fs::remove_file(&sibling);
    }
    renamed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_whole_files_and_leaves_no_sibling() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        replace_file(&path, b"one").unwrap();
        replace_file(&path, b"two").unwrap();
        replace_file_lazily(&path, b"three").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"three");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failure_leaves_the_target_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("is-a-directory");
        fs::create_dir(&target).unwrap();
        assert!(replace_file(&target, b"x").is_err());
        assert!(target.is_dir());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
