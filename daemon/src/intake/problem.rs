//! What can be wrong with a line, as a sentence for whoever wrote it.

use std::{borrow::Cow, fmt};

/// Characters quoted of somebody's input.
const QUOTED_CHARS_MAX: usize = 64;

/// What is wrong with a line. Only the first few are made into text.
#[derive(Debug)]
pub(crate) enum Problem<'a> {
    TooLong { max_bytes: u64 },
    NotUtf8 { at_byte: usize, is_utf16: bool },
    NotJson(serde_json::Error),
    TooDeep { levels_max: usize },
    NotAnObject(Kind),
    Missing { field: &'static str, hint: &'static str },
    WrongKind { field: Field, expected: &'static str, found: Kind },
    EmptyId,
    LongId { max_bytes: usize },
    UsedId { custom_id: Cow<'a, str>, line: u64 },
    WrongMethod(Cow<'a, str>),
    WrongUrl(Cow<'a, str>),
    NoMessages,
    MissingRole { index: usize },
    NotPositive { field: &'static str, found: &'a str },
}

/// A field, perhaps of the messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Field {
    Plain(&'static str),
    Message(usize),
    Role(usize),
}

/// What kind of JSON value something is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Null,
    Bool,
    Number,
    String,
    Array,
    Object,
}

impl Kind {
    /// The kind of valid JSON text.
    pub(crate) fn of(json: &str) -> Self {
        match json.trim_ascii_start().as_bytes().first() {
            Some(b'{') => Self::Object,
            Some(b'[') => Self::Array,
            Some(b'"') => Self::String,
            Some(b't' | b'f') => Self::Bool,
            Some(b'n') | None => Self::Null,
            Some(_) => Self::Number,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Null => "null",
            Self::Bool => "a boolean",
            Self::Number => "a number",
            Self::String => "a string",
            Self::Array => "an array",
            Self::Object => "an object",
        })
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(field) => f.write_str(field),
            Self::Message(index) => write!(f, "body.messages[{index}]"),
            Self::Role(index) => write!(f, "body.messages[{index}].role"),
        }
    }
}

impl fmt::Display for Problem<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong { max_bytes } => {
                write!(f, "longer than {}, the most a row may have", crate::ledger::human_bytes(*max_bytes))
            }
            Self::NotUtf8 { is_utf16: true, .. } => {
                f.write_str("not valid UTF-8: the file looks like UTF-16; save it as UTF-8")
            }
            Self::NotUtf8 { at_byte, .. } => write!(f, "not valid UTF-8 at byte {at_byte}"),
            Self::NotJson(error) => {
                let text = error.to_string();
                // serde_json counts lines of its own, and there is one.
                let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what);
                match what.strip_prefix("duplicate field `").and_then(|field| field.strip_suffix('`')) {
                    Some(field) => write!(f, "{field} is given twice"),
                    None => write!(f, "not valid JSON: {what} at column {}", error.column()),
                }
            }
            Self::TooDeep { levels_max } => write!(f, "nested deeper than {levels_max} levels"),
            Self::NotAnObject(found) => write!(f, "must be a JSON object, not {found}"),
            Self::Missing { field, hint } => write!(f, "{field} is missing{hint}"),
            Self::WrongKind { field, expected, found } => {
                write!(f, "{field} must be {expected}, not {found}")
            }
            Self::EmptyId => f.write_str("custom_id is empty"),
            Self::LongId { max_bytes } => write!(f, "custom_id is longer than {max_bytes} bytes"),
            Self::UsedId { custom_id, line } => {
                write!(f, "custom_id {} is already used on line {line}", quoted(custom_id))
            }
            Self::WrongMethod(found) => write!(f, "method must be \"POST\", not {}", quoted(found)),
            Self::WrongUrl(found) => {
                write!(
                    f,
                    "url {} is not supported: use /v1/chat/completions or /v1/completions",
                    quoted(found)
                )
            }
            Self::NoMessages => f.write_str("body.messages is empty"),
            Self::MissingRole { index } => write!(f, "{} is missing", Field::Role(*index)),
            Self::NotPositive { field, found } => {
                write!(f, "{field} must be a whole number of at least 1, not {}", shortened(found))
            }
        }
    }
}

fn quoted(text: &str) -> String {
    format!("{:?}", shortened(text))
}

fn shortened(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(QUOTED_CHARS_MAX) {
        Some((end, _)) => Cow::Owned(format!("{}…", &text[..end])),
        None => Cow::Borrowed(text),
    }
}
