//! The part of a terminal that is drawn again and again, in place, below what has been said for good.
//!
//! Each picture is written in one piece, so that it does not flicker, and no line may be wider than the screen
//! (renderers see to that), so that going up as many lines as were drawn finds the first of them again. The cursor is
//! hidden meanwhile and comes back however the program ends, short of SIGKILL.

use std::io::{self, Write};

use crossterm::{
    QueueableCommand, cursor,
    terminal::{Clear, ClearType},
};

use crate::error::{Error, Result};

/// A region of lines at the bottom of a terminal.
#[derive(Debug)]
pub struct Live<W: Write> {
    terminal: W,
    /// Lines of the picture that stands there now.
    drawn: u16,
    cursor_hidden: bool,
}

impl<W: Write> Live<W> {
    /// Draws to a terminal. Nothing is written before the first picture.
    pub fn new(terminal: W) -> Self {
        Live { terminal, drawn: 0, cursor_hidden: false }
    }

    /// Replaces the picture.
    pub fn draw(&mut self, lines: &[String]) -> Result<()> {
        self.write(&[], lines).map_err(Error::write)
    }

    /// Writes lines for good, above the picture, which stays.
    pub fn say(&mut self, said: &[String], picture: &[String]) -> Result<()> {
        self.write(said, picture).map_err(Error::write)
    }

    fn write(&mut self, said: &[String], picture: &[String]) -> io::Result<()> {
        let mut bytes = Vec::new();
        if !self.cursor_hidden && !picture.is_empty() {
            bytes.queue(cursor::Hide)?;
            self.cursor_hidden = true;
        }
        if self.drawn > 0 {
            bytes.queue(cursor::MoveToPreviousLine(self.drawn))?;
        }
        for line in said.iter().chain(picture) {
            bytes.write_all(line.as_bytes())?;
            bytes.queue(Clear(ClearType::UntilNewLine))?;
            bytes.write_all(b"\r\n")?;
        }
        bytes.queue(Clear(ClearType::FromCursorDown))?;
        self.drawn = u16::try_from(picture.len()).unwrap_or(u16::MAX);
        self.terminal.write_all(&bytes)?;
        self.terminal.flush()
    }

    /// Leaves the picture where it is and gives the cursor back.
    pub fn finish(&mut self) {
        self.drawn = 0;
        if self.cursor_hidden {
            self.cursor_hidden = false;
            // On the way out there is nobody to tell.
            let _ = self.terminal.queue(cursor::Show).and_then(|terminal| terminal.flush());
        }
    }
}

impl<W: Write> Drop for Live<W> {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Resolves when a person or the system asks the program to end: Ctrl-C, SIGTERM, or the terminal going away.
pub async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let wait = |kind: SignalKind| async move {
        match signal(kind) {
            Ok(mut stream) => {
                stream.recv().await;
            }
            // Without a handler the signal ends the program by itself.
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = wait(SignalKind::interrupt()) => {}
        () = wait(SignalKind::terminate()) => {}
        () = wait(SignalKind::hangup()) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_is_replaced_in_place_and_the_cursor_comes_back() {
        let mut bytes = Vec::new();
        {
            let mut live = Live::new(&mut bytes);
            live.draw(&["a".into(), "b".into()]).unwrap();
            live.say(&["said".into()], &["c".into()]).unwrap();
            live.draw(&["d".into()]).unwrap();
        }
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(
            text,
            "\x1b[?25la\x1b[K\r\nb\x1b[K\r\n\x1b[J\
             \x1b[2Fsaid\x1b[K\r\nc\x1b[K\r\n\x1b[J\
             \x1b[1Fd\x1b[K\r\n\x1b[J\x1b[?25h"
        );
    }

    #[test]
    fn what_was_never_drawn_leaves_no_trace() {
        let mut bytes = Vec::new();
        drop(Live::new(&mut bytes));
        assert!(bytes.is_empty());
    }
}
