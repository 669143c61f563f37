//! Cuts a pipe's bytes into lines of bounded length.

use bytes::{Buf as _, BytesMut};

/// The longest line taken from a worker's stdout. Twice the largest message to the controller: what is longer is not
/// an answer but a worker gone wrong.
pub const MAX_LINE_BYTES: usize = 64 * 1024 * 1024;

/// Room made for one read. The size of a Linux pipe: more cannot come at once.
pub const READ_BYTES: usize = 64 * 1024;

/// A buffer that grew past this for one long line is given back.
const KEEP_BYTES: usize = 1024 * 1024;

/// A line past the bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a line is longer than {0} bytes")]
pub struct TooLong(pub usize);

/// Collects bytes and hands out lines.
#[derive(Debug)]
pub struct Splitter {
    buffer: BytesMut,
    /// Up to here there is no end of line.
    searched: usize,
    max_line_bytes: usize,
}

impl Splitter {
    /// With this bound.
    #[must_use]
    pub fn new(max_line_bytes: usize) -> Self {
        Self { buffer: BytesMut::new(), searched: 0, max_line_bytes }
    }

    /// Where to read into; has room for [`READ_BYTES`] more.
    pub fn space(&mut self) -> &mut BytesMut {
        if self.buffer.is_empty() && self.buffer.capacity() > KEEP_BYTES {
            self.buffer = BytesMut::new();
        }
        self.buffer.reserve(READ_BYTES);
        &mut self.buffer
    }

    /// The next whole line, without its end.
    ///
    /// # Errors
    /// [`TooLong`] when what has come so far is past the bound without an end of line.
    pub fn next_line(&mut self) -> Result<Option<BytesMut>, TooLong> {
        if let Some(at) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') {
            let line = self.buffer.split_to(self.searched + at);
            self.buffer.advance(1);
            self.searched = 0;
            return Ok(Some(line));
        }
        self.searched = self.buffer.len();
        if self.searched > self.max_line_bytes { Err(TooLong(self.max_line_bytes)) } else { Ok(None) }
    }

    /// What is there without an end of line, when no more will come or it is too long to wait for more.
    pub fn take_rest(&mut self) -> BytesMut {
        self.searched = 0;
        self.buffer.split()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines(splitter: &mut Splitter) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| splitter.next_line().unwrap()).map(|line| line.to_vec()).collect()
    }

    proptest! {
        #[test]
        fn lines_are_the_same_however_the_bytes_arrive(
            text in proptest::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..200),
            cuts in proptest::collection::vec(1..20_usize, 1..20),
        ) {
            let mut splitter = Splitter::new(1000);
            let (mut got, mut rest) = (Vec::new(), &text[..]);
            for cut in cuts.iter().cycle() {
                let (head, tail) = rest.split_at((*cut).min(rest.len()));
                splitter.space().extend_from_slice(head);
                got.extend(lines(&mut splitter));
                rest = tail;
                if rest.is_empty() { break; }
            }
            got.push(splitter.take_rest().to_vec());
            let expected: Vec<Vec<u8>> = text.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
            prop_assert_eq!(got, expected);
        }
    }

    #[test]
    fn an_endless_line_is_an_error_at_the_bound() {
        let mut splitter = Splitter::new(10);
        splitter.space().extend_from_slice(b"0123456789");
        assert_eq!(splitter.next_line(), Ok(None));
        splitter.space().extend_from_slice(b"x");
        assert_eq!(splitter.next_line(), Err(TooLong(10)));
    }
}
