//! The files of the state directory behind a trait: the real ones here, simulated ones with crashes in
//! [`sim`](super::sim).
//!
//! Paths are relative to the state directory and separated by `/`. Nothing is durable before `sync_file` (bytes) or
//! `sync_directory` (names) said so; see `fsync.rs`.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
};

use super::fsync;

/// What the ledger does with files.
pub trait Disk {
    /// Names in a directory, in no order.
    ///
    /// # Errors
    /// When it cannot be read.
    fn list(&mut self, directory: &str) -> io::Result<Vec<String>>;

    /// A file's length in bytes; `None` when there is no such file. What is read and written from now on is the file
    /// that has this name now.
    ///
    /// # Errors
    /// When it cannot be found out.
    fn file_bytes(&mut self, path: &str) -> io::Result<Option<u64>>;

    /// Reads at a position, as much as there is up to the buffer's length.
    ///
    /// # Errors
    /// When the file is missing or cannot be read.
    fn read_at(&mut self, path: &str, at: u64, buffer: &mut [u8]) -> io::Result<usize>;

    /// Replaces a file's content, creating it when missing.
    ///
    /// # Errors
    /// When it cannot be written; the content is then undefined.
    fn write_new(&mut self, path: &str, bytes: &[u8]) -> io::Result<()>;

    /// Writes at a position, creating the file when missing.
    ///
    /// # Errors
    /// When not everything could be written; the bytes from `at` on are then undefined.
    fn write_at(&mut self, path: &str, at: u64, bytes: &[u8]) -> io::Result<()>;

    /// Cuts a file to a length.
    ///
    /// # Errors
    /// When it is missing or cannot be changed.
    fn truncate(&mut self, path: &str, bytes: u64) -> io::Result<()>;

    /// Makes a file's bytes durable.
    ///
    /// # Errors
    /// When that is not certain; what was written since the last sync is then undefined.
    fn sync_file(&mut self, path: &str) -> io::Result<()>;

    /// Makes a directory's entries durable.
    ///
    /// # Errors
    /// When that is not certain.
    fn sync_directory(&mut self, directory: &str) -> io::Result<()>;

    /// Renames a file or directory; a file at the new name is replaced at once.
    ///
    /// # Errors
    /// When it did not happen.
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()>;

    /// Makes a directory, parents included; one that exists is fine.
    ///
    /// # Errors
    /// When it cannot be made.
    fn create_directory(&mut self, directory: &str) -> io::Result<()>;

    /// Removes a directory and all in it; a missing one is fine.
    ///
    /// # Errors
    /// When something of it remains.
    fn remove_directory(&mut self, directory: &str) -> io::Result<()>;

    /// Bytes that may still be written by this user.
    ///
    /// # Errors
    /// When it cannot be found out.
    fn free_bytes(&mut self) -> io::Result<u64>;

    /// Says that nothing below a directory is used for now: its files need not be kept open.
    fn close(&mut self, directory: &str);

    /// The path as a person would type it, for messages.
    fn display(&self, path: &str) -> PathBuf;
}

/// Open files kept at most. A job that is not over uses four (input, index, results, errors); 64 leaves room for sixteen
/// jobs at a time and stays far below the 256 descriptors macOS gives a process by default.
const OPEN_FILES_MAX: usize = 64;

/// The real file system below a directory.
#[derive(Debug)]
pub struct OsDisk {
    root: PathBuf,
    open: HashMap<String, File>,
}

impl OsDisk {
    /// Files below `root`, which need not exist yet.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), open: HashMap::new() }
    }

    fn file(&mut self, path: &str, create: bool) -> io::Result<&File> {
        if !self.open.contains_key(path) {
            let full = self.root.join(path);
            let file =
                match OpenOptions::new().read(true).write(true).create(create).truncate(false).open(&full) {
                    // Files of a job that is only read may be read-only.
                    Err(error) if !create && error.kind() == io::ErrorKind::PermissionDenied => {
                        File::open(&full)?
                    }
                    outcome => outcome?,
                };
            if self.open.len() >= OPEN_FILES_MAX {
                self.open.clear();
            }
            self.open.insert(path.to_owned(), file);
        }
        self.open.get(path).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// How many files are held open.
    #[cfg(test)]
    pub(crate) fn open_files(&self) -> usize {
        self.open.len()
    }

    /// Forgets handles of a path and of everything below it.
    fn forget(&mut self, path: &str) {
        self.open.retain(|name, _| {
            name.strip_prefix(path).is_none_or(|rest| !rest.is_empty() && !rest.starts_with('/'))
        });
    }
}

impl Disk for OsDisk {
    fn list(&mut self, directory: &str) -> io::Result<Vec<String>> {
        fs::read_dir(self.root.join(directory))?
            .map(|entry| entry.map(|e| e.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    fn file_bytes(&mut self, path: &str) -> io::Result<Option<u64>> {
        match fs::metadata(self.root.join(path)) {
            Ok(metadata) => {
                // Somebody may have put another file in its place (editors do): an old handle would write to nowhere.
                if let Some(file) = self.open.get(path)
                    && file.metadata()?.ino() != metadata.ino()
                {
                    self.open.remove(path);
                }
                Ok(metadata.is_file().then_some(metadata.len()))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.open.remove(path);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn read_at(&mut self, path: &str, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let file = self.file(path, false)?;
        let mut filled = 0;
        while filled < buffer.len() {
            match file.read_at(&mut buffer[filled..], at + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn write_new(&mut self, path: &str, bytes: &[u8]) -> io::Result<()> {
        self.forget(path);
        let file = self.file(path, true)?;
        file.set_len(0)?;
        file.write_all_at(bytes, 0)
    }

    fn write_at(&mut self, path: &str, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.file(path, true)?.write_all_at(bytes, at)
    }

    fn truncate(&mut self, path: &str, bytes: u64) -> io::Result<()> {
        self.file(path, false)?.set_len(bytes)
    }

    fn sync_file(&mut self, path: &str) -> io::Result<()> {
        fsync::sync_file(self.file(path, false)?)
    }

    fn sync_directory(&mut self, directory: &str) -> io::Result<()> {
        fsync::sync_directory(&self.root.join(directory))
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.forget(from);
        self.forget(to);
        fs::rename(self.root.join(from), self.root.join(to))
    }

    fn create_directory(&mut self, directory: &str) -> io::Result<()> {
        fs::create_dir_all(self.root.join(directory))
    }

    fn remove_directory(&mut self, directory: &str) -> io::Result<()> {
        self.forget(directory);
        match fs::remove_dir_all(self.root.join(directory)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn free_bytes(&mut self) -> io::Result<u64> {
        free_bytes(&self.root)
    }

    fn close(&mut self, directory: &str) {
        self.forget(directory);
    }

    fn display(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }
}

/// Bytes that may still be written below a directory by this user.
pub(crate) fn free_bytes(directory: &Path) -> io::Result<u64> {
    let stat = nix::sys::statvfs::statvfs(directory)?;
    // The types differ: 64 bits on Linux, 32 on macOS.
    #[expect(clippy::useless_conversion, reason = "the fields are narrower on macOS")]
    Ok(u64::from(stat.blocks_available()).saturating_mul(u64::from(stat.fragment_size())))
}

/// Reads a whole file that ought to be small.
///
/// # Errors
/// When it is missing, cannot be read or is longer than `max_bytes`.
pub(crate) fn read_small(disk: &mut impl Disk, path: &str, max_bytes: u64) -> io::Result<Vec<u8>> {
    let bytes = disk.file_bytes(path)?.ok_or(io::ErrorKind::NotFound)?;
    if bytes > max_bytes {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{bytes} bytes are too many")));
    }
    let mut content = vec![0; usize::try_from(bytes).unwrap_or(usize::MAX)];
    let read = disk.read_at(path, 0, &mut content)?;
    content.truncate(read);
    Ok(content)
}

/// Replaces a file so that after a crash there is the old content or the new, never a mixture: written beside it,
/// synced, renamed, directory synced.
///
/// # Errors
/// When it is not certain that the new content is durable.
pub(crate) fn replace(disk: &mut impl Disk, directory: &str, name: &str, bytes: &[u8]) -> io::Result<()> {
    let (temporary, path) = (format!("{directory}/{name}.tmp"), format!("{directory}/{name}"));
    disk.write_new(&temporary, bytes)?;
    disk.sync_file(&temporary)?;
    disk.rename(&temporary, &path)?;
    disk.sync_directory(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_renamed_directory_takes_its_open_files_along() {
        let root = tempfile::tempdir().unwrap();
        let mut disk = OsDisk::new(root.path());
        disk.create_directory("jobs/.incoming-1").unwrap();
        disk.write_new("jobs/.incoming-1/results.jsonl", b"one\n").unwrap();
        disk.rename("jobs/.incoming-1", "jobs/j1").unwrap();
        disk.create_directory("jobs/.incoming-1").unwrap();
        disk.write_new("jobs/.incoming-1/results.jsonl", b"other").unwrap();
        disk.write_at("jobs/j1/results.jsonl", 4, b"two\n").unwrap();
        assert_eq!(read_small(&mut disk, "jobs/j1/results.jsonl", 100).unwrap(), b"one\ntwo\n");
        assert_eq!(read_small(&mut disk, "jobs/.incoming-1/results.jsonl", 100).unwrap(), b"other");
    }

    #[test]
    fn replacing_leaves_the_new_content_and_nothing_beside_it() {
        let root = tempfile::tempdir().unwrap();
        let mut disk = OsDisk::new(root.path());
        disk.create_directory("d").unwrap();
        replace(&mut disk, "d", "f", b"a long first content").unwrap();
        replace(&mut disk, "d", "f", b"second").unwrap();
        assert_eq!(read_small(&mut disk, "d/f", 100).unwrap(), b"second");
        assert_eq!(disk.list("d").unwrap(), ["f"]);
        assert!(read_small(&mut disk, "d/f", 3).is_err());
    }

    #[test]
    fn absent_files_have_no_length_and_absent_directories_are_removed_already() {
        let root = tempfile::tempdir().unwrap();
        let mut disk = OsDisk::new(root.path());
        assert_eq!(disk.file_bytes("nothing").unwrap(), None);
        disk.remove_directory("nothing").unwrap();
        assert!(disk.truncate("nothing", 0).is_err());
        assert!(disk.free_bytes().unwrap() > 0);
    }
}
