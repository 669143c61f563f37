//! On Linux: rtnetlink(7).

use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::{
    libc,
    sys::socket::{AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, socket},
};

/// Interfaces with their carrier, and addresses of both kinds: what an observation tells of them.
const GROUPS: libc::c_int = libc::RTMGRP_LINK | libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR;

pub(super) fn open() -> nix::Result<OwnedFd> {
    let fd =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    // 0: the kernel chooses the socket's number.
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, GROUPS.cast_unsigned()))?;
    Ok(fd)
}
