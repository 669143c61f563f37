//! Asking before something is lost.

use std::io::{self, BufRead, Write};

use crate::error::{Error, Result};

/// Anything but yes is no.
pub(super) fn ask(question: &str) -> Result<bool> {
    let mut stderr = io::stderr().lock();
    stderr.write_all(question.as_bytes()).and_then(|()| stderr.flush()).map_err(Error::write)?;
    let mut answer = String::new();
    io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(|e| Error::local(format!("Cannot read the answer: {e}.")))?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}
