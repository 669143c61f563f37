//! Whether this machine can listen where a rank is to listen, looked at right before the start.
//!
//! Each port is bound and released, never listened on: whoever connects meanwhile is refused as before, and tries again.
//! Between this and the worker's own bind somebody else may still take it; then the worker says so. What this gives is a
//! refusal in words, with the launch not used up, in the case that is not that rare: an earlier gang's rank still there.

use std::{
    net::SocketAddr,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt},
};

/// All of them are free, or one sentence.
///
/// # Errors
/// The first that is not.
pub fn check(addresses: &[SocketAddr]) -> Result<(), String> {
    let mut held = Vec::new();
    for address in addresses {
        match try_bind(*address) {
            Ok(socket) => held.push(socket),
            Err(Errno::EADDRINUSE) => {
                return Err(format!("port {} on {} is in use", address.port(), address.ip()));
            }
            Err(Errno::EADDRNOTAVAIL) => {
                return Err(format!("{} is no address of this machine", address.ip()));
            }
            Err(errno) => {
                let what = errno.desc();
                return Err(format!("port {} on {} cannot be used: {what}", address.port(), address.ip()));
            }
        }
    }
    Ok(())
}

fn try_bind(address: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Stream, SockFlag::empty(), None)?;
    // As the listeners themselves do: connections of an earlier gang that linger in the kernel are no obstacle.
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_port_in_use_is_named_and_a_free_one_stays_free() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(check(&[address]).unwrap_err(), format!("port {} on 127.0.0.1 is in use", address.port()));
        drop(listener);
        check(&[address]).unwrap();
        TcpListener::bind(address).unwrap();
    }

    #[test]
    fn an_address_of_another_machine_is_named() {
        // Of the block that is kept for documentation.
        let address = "192.0.2.1:47003".parse().unwrap();
        assert_eq!(check(&[address]).unwrap_err(), "192.0.2.1 is no address of this machine");
    }
}
