//! Word from the kernel that network interfaces may have changed.
//!
//! The promise: [`Changes::wait`] returns as soon as the kernel says that an interface or an address has changed, also when
//! so much changed at once that it could not say all of it. That is all it tells: what has changed, the probe finds by
//! looking.
//!
//! * `socket` waits for the kernel's messages, and throws them away;
//! * `linux` and `macos` open the socket on which the kernel sends them.

mod socket;

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
use linux as native_socket;
#[cfg(target_os = "macos")]
mod macos;
#[cfg(target_os = "macos")]
use macos as native_socket;

use std::time::Duration;

use nix::errno::Errno;

/// The kernel says nothing, or no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the kernel's messages about network interfaces cannot be {what}")]
pub struct Error {
    /// Had, waited for, or read.
    pub what: &'static str,
    /// What the system said.
    pub source: Errno,
}

/// Something that tells of changes.
pub trait Changes: Send {
    /// Waits until there may be a change (`true`), or the time is up (`false`).
    ///
    /// # Errors
    /// When it can tell no more; there is no use in asking it again.
    fn wait(&mut self, limit: Duration) -> Result<bool, Error>;
}

/// What this machine's kernel tells from now on.
///
/// # Errors
/// When it gives no socket for that.
pub fn native() -> Result<Box<dyn Changes>, Error> {
    let socket = native_socket::open().map_err(|source| Error { what: "had", source })?;
    Ok(Box::new(socket::Socket::from(socket)))
}
