//! On macOS: route(4), which tells of interfaces' flags, of addresses, and of routes.
//!
//! It does not promise to tell of a carrier by itself. It speaks when the system takes back the routes and addresses of a
//! port that lost it; where there are none, the regular look finds it. The kernel's own events of carriers
//! (`KEV_DL_LINK_OFF`) would need an ioctl that has no safe wrapper.

use std::os::fd::OwnedFd;

use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

pub(super) fn open() -> nix::Result<OwnedFd> {
    // No protocol: of every address family.
    let fd = socket(AddressFamily::Route, SockType::Raw, SockFlag::empty(), None)?;
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(fd)
}
