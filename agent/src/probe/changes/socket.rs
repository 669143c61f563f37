//! Waits for messages on a socket. What they say is not read.

use std::{
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{MsgFlags, recv},
};

use super::{Changes, Error};

/// Messages taken at one go, a few for each change: more than the kernel holds for us (some hundreds). Whatever is left tells
/// of a change again, and costs one look more.
const MAX_TAKEN: usize = 1024;

/// The kernel cuts a message to what there is room for.
const GLANCE_BYTES: usize = 16;

/// See the module.
#[derive(Debug)]
pub(super) struct Socket(OwnedFd);

impl From<OwnedFd> for Socket {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl Changes for Socket {
    fn wait(&mut self, limit: Duration) -> Result<bool, Error> {
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], limit) {
            Ok(0) => Ok(false),
            Ok(_) => self.take_all().map(|()| true),
            // A signal came: nobody knows, so it may be.
            Err(Errno::EINTR) => Ok(true),
            Err(source) => Err(Error { what: "waited for", source }),
        }
    }
}

impl Socket {
    fn take_all(&self) -> Result<(), Error> {
        for _ in 0..MAX_TAKEN {
            match recv(self.0.as_raw_fd(), &mut [0; GLANCE_BYTES], MsgFlags::MSG_DONTWAIT) {
                // ENOBUFS: there was more to tell than the socket holds, which is a change, too.
                Ok(_) | Err(Errno::ENOBUFS | Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(source) => return Err(Error { what: "read", source }),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::unix::net::UnixDatagram};

    use super::*;

    /// Long enough to be told from "at once" by whoever waits for the test.
    const LONG: Duration = Duration::from_secs(600);

    #[test]
    fn all_that_waits_tells_of_one_change() {
        let (kernel, ours) = UnixDatagram::pair().unwrap();
        let mut socket = Socket::from(OwnedFd::from(ours));
        assert_eq!(socket.wait(Duration::ZERO), Ok(false));
        for _ in 0..3 {
            kernel.send(&[7; 4 * GLANCE_BYTES]).unwrap();
        }
        assert_eq!(socket.wait(LONG), Ok(true));
        assert_eq!(socket.wait(Duration::ZERO), Ok(false));
    }

    #[test]
    fn what_is_no_socket_is_an_error_in_words() {
        let mut socket = Socket::from(OwnedFd::from(File::open("/dev/null").unwrap()));
        let error = socket.wait(LONG).unwrap_err();
        assert_eq!(error.to_string(), "the kernel's messages about network interfaces cannot be read");
        assert_eq!(error.source, Errno::ENOTSOCK);
    }
}
