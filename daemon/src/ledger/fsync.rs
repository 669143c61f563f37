//! Making bytes survive a power cut, in one place.
//!
//! - A file's bytes are durable after `sync_data`: on Linux `fdatasync`, which also commits the length of a file that
//!   grew; on macOS the standard library issues `F_FULLFSYNC`, because plain `fsync` there stops at the drive's
//!   volatile cache.
//! - A file's *name* is not durable with its bytes. Whoever creates, renames or removes an entry syncs the directory
//!   that holds it, and does so before telling anybody.
//! - After a failed sync the kernel may have dropped the dirty pages and marked them clean: trying the sync again
//!   proves nothing. Callers cut the file back to what was durable before and write the bytes anew.

use std::{fs::File, io, path::Path};

use nix::errno::Errno;

/// Makes the bytes and the length of a file durable.
pub(crate) fn sync_file(file: &File) -> io::Result<()> {
    or_plain_fsync(file, file.sync_data())
}

/// Makes the entries of a directory durable: what was created in it, renamed into it or removed from it.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = File::open(path)?;
    or_plain_fsync(&directory, directory.sync_all())
}

/// `F_FULLFSYNC` is not there on every file system a Mac can mount (network shares, some external disks); there plain
/// `fsync` is the most that can be had.
fn or_plain_fsync(file: &File, outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error)
            if cfg!(target_os = "macos")
                && [Errno::ENOTSUP, Errno::ENOTTY, Errno::EINVAL]
                    .iter()
                    .any(|errno| error.raw_os_error() == Some(*errno as i32)) =>
        {
            Ok(nix::unistd::fsync(file)?)
        }
        outcome => outcome,
    }
}
