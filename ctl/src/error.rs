//! What can go wrong in `clusterctl`, each with what a person can do about it.
//!
//! An error is shown on stderr as a sentence and, where there is one, a hint; with `--output json` as one object on
//! stderr: `{"error":{"kind","message","hint"}}`. Stdout carries data only.

use std::io;

use serde::Serialize;

use crate::exit::Exit;

/// A result whose error is [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a command could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No controller answered.
    #[error("No controller answers at {address}: {cause}.")]
    Unreachable {
        /// The "host:port" that was tried.
        address: String,
        /// Where that address came from, for example "the default address".
        origin: &'static str,
        /// What the attempt ended with, without a full stop.
        cause: String,
        /// What to do.
        hint: String,
    },
    /// The controller was there and went away in the middle.
    #[error("The connection to the controller at {address} broke: {cause}.")]
    Lost {
        /// The "host:port" of the controller.
        address: String,
        /// What the connection ended with, without a full stop.
        cause: String,
        /// What to do.
        hint: String,
    },
    /// The controller said no.
    #[error("{message}")]
    Refused {
        /// The controller's sentence.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
    /// The controller knows no job or node of that name.
    #[error("{message}")]
    NotFound {
        /// The controller's sentence.
        message: String,
        /// Where to look.
        hint: Option<String>,
    },
    /// Something on this side is not as it must be: a file, a program, a terminal.
    #[error("{message}")]
    Local {
        /// What happened, to what.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
    /// The command line is wrong in a way clap cannot see.
    #[error("{message}")]
    Usage {
        /// What is wrong.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
    /// Whoever read our output has had enough. Not an error to report.
    #[error("The reader of the output went away.")]
    ReaderGone,
    /// Output could not be written, for example to a full disk.
    #[error("Cannot write the output: {0}.")]
    Write(#[source] io::Error),
    /// Stopped with Ctrl-C.
    #[error("Stopped.")]
    Interrupted,
}

impl Error {
    /// A [`Error::Local`] without a hint.
    pub fn local(message: impl Into<String>) -> Self {
        Error::Local { message: message.into(), hint: None }
    }

    /// A [`Error::Local`] with what to do.
    pub fn local_hint(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Error::Local { message: message.into(), hint: Some(hint.into()) }
    }

    /// An error of writing to stdout or stderr; a closed pipe is told apart.
    pub fn write(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe { Error::ReaderGone } else { Error::Write(error) }
    }

    /// The exit code this error ends the program with.
    pub fn exit(&self) -> Exit {
        match self {
            Error::Unreachable { .. } | Error::Lost { .. } => Exit::Unreachable,
            Error::Refused { .. } | Error::NotFound { .. } | Error::Local { .. } | Error::Write(_) => {
                Exit::Failed
            }
            Error::Usage { .. } => Exit::Usage,
            Error::ReaderGone => Exit::Ok,
            Error::Interrupted => Exit::Interrupted,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Error::Unreachable { hint, .. } | Error::Lost { hint, .. } => Some(hint),
            Error::Refused { hint, .. }
            | Error::NotFound { hint, .. }
            | Error::Local { hint, .. }
            | Error::Usage { hint, .. } => hint.as_deref(),
            Error::ReaderGone | Error::Write(_) | Error::Interrupted => None,
        }
    }

    /// What was tried before giving up, where that is worth a line.
    pub fn tried(&self) -> Option<String> {
        match self {
            Error::Unreachable { address, origin, .. } => Some(format!("{address}, {origin}")),
            _ => None,
        }
    }

    /// A stable word for programs.
    pub fn kind(&self) -> &'static str {
        match self {
            Error::Unreachable { .. } => "unreachable",
            Error::Lost { .. } => "connection-lost",
            Error::Refused { .. } => "refused",
            Error::NotFound { .. } => "not-found",
            Error::Local { .. } => "failed",
            Error::Usage { .. } => "usage",
            Error::ReaderGone => "reader-gone",
            Error::Write(_) => "write-failed",
            Error::Interrupted => "interrupted",
        }
    }

    /// The shape `--output json` prints on stderr.
    pub fn view(&self) -> ErrorView {
        ErrorView {
            error: ErrorBody {
                kind: self.kind(),
                message: self.to_string(),
                hint: self.hint().map(str::to_owned),
                tried: self.tried(),
            },
        }
    }
}

/// `{"error":{…}}`
#[derive(Debug, Serialize)]
pub struct ErrorView {
    error: ErrorBody,
}

#[derive(Debug, Serialize)]
struct ErrorBody {
    kind: &'static str,
    message: String,
    hint: Option<String>,
    tried: Option<String>,
}
