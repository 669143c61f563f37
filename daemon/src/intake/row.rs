//! One line: is it a row?

use std::borrow::Cow;

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use super::problem::{Field, Kind, Problem};
use crate::ledger::levels_at_most;

/// Levels a row may be nested. Tool definitions take a dozen; readers after us recurse.
const LEVELS_MAX: usize = 128;

/// Bytes a `custom_id` may have. It stands in every line of the output.
const ID_BYTES_MAX: usize = 512;

#[derive(Deserialize)]
struct Row<'a> {
    #[serde(borrow)]
    custom_id: Option<&'a RawValue>,
    #[serde(borrow)]
    method: Option<&'a RawValue>,
    #[serde(borrow)]
    url: Option<&'a RawValue>,
    #[serde(borrow)]
    body: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    model: Option<&'a RawValue>,
    #[serde(borrow)]
    messages: Option<&'a RawValue>,
    #[serde(borrow)]
    prompt: Option<&'a RawValue>,
    #[serde(borrow)]
    max_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    max_completion_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    n: Option<&'a RawValue>,
    #[serde(borrow)]
    temperature: Option<&'a RawValue>,
    #[serde(borrow)]
    top_p: Option<&'a RawValue>,
    #[serde(borrow)]
    min_p: Option<&'a RawValue>,
    #[serde(borrow)]
    top_k: Option<&'a RawValue>,
    #[serde(borrow)]
    seed: Option<&'a RawValue>,
    #[serde(borrow)]
    presence_penalty: Option<&'a RawValue>,
    #[serde(borrow)]
    frequency_penalty: Option<&'a RawValue>,
}

/// What is needed of a line that is a row.
#[derive(Debug)]
pub(crate) struct Checked<'a> {
    pub(crate) custom_id: Cow<'a, str>,
    /// Tokens it may generate, where it says so.
    pub(crate) max_tokens: Option<u64>,
}

/// Checks a line.
pub(crate) fn check(line: &[u8]) -> Result<Checked<'_>, Problem<'_>> {
    let text = std::str::from_utf8(line).map_err(|error| Problem::NotUtf8 {
        at_byte: error.valid_up_to() + 1,
        is_utf16: line.starts_with(&[0xff, 0xfe]) || line.starts_with(&[0xfe, 0xff]),
    })?;
    let row: Row<'_> = serde_json::from_str(text).map_err(|error| not_a_row(text, error))?;
    if !levels_at_most(line, LEVELS_MAX) {
        return Err(Problem::TooDeep { levels_max: LEVELS_MAX });
    }
    let custom_id = string("custom_id", row.custom_id, "")?;
    match custom_id.len() {
        0 => return Err(Problem::EmptyId),
        bytes if bytes > ID_BYTES_MAX => return Err(Problem::LongId { max_bytes: ID_BYTES_MAX }),
        _ => {}
    }
    let method = string("method", row.method, ": it must be \"POST\"")?;
    if method != "POST" {
        return Err(Problem::WrongMethod(method));
    }
    let url = string("url", row.url, ": use /v1/chat/completions or /v1/completions")?;
    let is_chat = match &*url {
        "/v1/chat/completions" => true,
        "/v1/completions" => false,
        _ => return Err(Problem::WrongUrl(url)),
    };
    let max_tokens = check_body(required("body", row.body)?, is_chat)?;
    Ok(Checked { custom_id, max_tokens })
}

/// serde says what it wanted of a value that is no object; say what there is.
fn not_a_row(text: &str, error: serde_json::Error) -> Problem<'_> {
    match serde_json::from_str::<&RawValue>(text) {
        Ok(value) if Kind::of(value.get()) != Kind::Object => Problem::NotAnObject(Kind::of(value.get())),
        Err(syntax) => Problem::NotJson(syntax),
        Ok(_) => Problem::NotJson(error),
    }
}

/// Answers with the tokens it may generate, where it says so.
fn check_body<'a>(body: &'a str, is_chat: bool) -> Result<Option<u64>, Problem<'a>> {
    if Kind::of(body) != Kind::Object {
        return Err(wrong(Field::Plain("body"), "an object", body));
    }
    let body: Body<'a> = serde_json::from_str(body).map_err(Problem::NotJson)?;
    if is_chat {
        check_messages(required("body.messages", body.messages)?)?;
    } else {
        let prompt = required("body.prompt", body.prompt)?;
        if !matches!(Kind::of(prompt), Kind::String | Kind::Array) {
            return Err(wrong(Field::Plain("body.prompt"), "a string or an array", prompt));
        }
    }
    let most = check_positive("body.max_tokens", body.max_tokens)?;
    let most_in_all = check_positive("body.max_completion_tokens", body.max_completion_tokens)?;
    check_positive("body.n", body.n)?;
    for (field, expected, kind, value) in [
        ("body.model", "a string", Kind::String, body.model),
        ("body.temperature", "a number", Kind::Number, body.temperature),
        ("body.top_p", "a number", Kind::Number, body.top_p),
        ("body.min_p", "a number", Kind::Number, body.min_p),
        ("body.top_k", "a number", Kind::Number, body.top_k),
        ("body.seed", "a number", Kind::Number, body.seed),
        ("body.presence_penalty", "a number", Kind::Number, body.presence_penalty),
        ("body.frequency_penalty", "a number", Kind::Number, body.frequency_penalty),
    ] {
        // OpenAI's clients send null for what is not set; serde makes it None.
        if let Some(value) = value.map(RawValue::get).filter(|value| Kind::of(value) != kind) {
            return Err(wrong(Field::Plain(field), expected, value));
        }
    }
    Ok(most_in_all.or(most))
}

fn check_positive<'a>(field: &'static str, value: Option<&'a RawValue>) -> Result<Option<u64>, Problem<'a>> {
    let Some(value) = value.map(RawValue::get) else { return Ok(None) };
    if Kind::of(value) != Kind::Number {
        return Err(wrong(Field::Plain(field), "a whole number of at least 1", value));
    }
    match value.parse::<u64>() {
        Ok(number @ 1..) => Ok(Some(number)),
        _ => Err(Problem::NotPositive { field, found: value }),
    }
}

fn check_messages(messages: &str) -> Result<(), Problem<'_>> {
    if Kind::of(messages) != Kind::Array {
        return Err(wrong(Field::Plain("body.messages"), "an array", messages));
    }
    let mut deserializer = serde_json::Deserializer::from_str(messages);
    match deserializer.deserialize_seq(Messages).map_err(Problem::NotJson)? {
        Seen::Right(0) => Err(Problem::NoMessages),
        Seen::Right(_) => Ok(()),
        Seen::NoObject(index, found) => {
            Err(Problem::WrongKind { field: Field::Message(index), expected: "an object", found })
        }
        Seen::NoRole(index, None) => Err(Problem::MissingRole { index }),
        Seen::NoRole(index, Some(found)) => {
            Err(Problem::WrongKind { field: Field::Role(index), expected: "a string", found })
        }
    }
}

/// Looks at messages one by one, keeping none.
struct Messages;

/// How many messages were right, or the first that was not.
enum Seen {
    Right(usize),
    NoObject(usize, Kind),
    NoRole(usize, Option<Kind>),
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    role: Option<&'a RawValue>,
}

impl<'de> Visitor<'de> for Messages {
    type Value = Seen;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an array of messages")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Seen, A::Error> {
        let (mut seen, mut index) = (None, 0);
        while let Some(message) = seq.next_element::<&'de RawValue>()? {
            let message = message.get();
            if Kind::of(message) != Kind::Object {
                seen = Some(Seen::NoObject(index, Kind::of(message)));
                break;
            }
            let role = serde_json::from_str::<Message<'_>>(message).map_err(serde::de::Error::custom)?.role;
            let kind = role.map(|role| Kind::of(role.get()));
            if kind != Some(Kind::String) {
                seen = Some(Seen::NoRole(index, kind));
                break;
            }
            index += 1;
        }
        // An array is read to its end, whatever was found.
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(seen.unwrap_or(Seen::Right(index)))
    }
}

fn required<'a>(field: &'static str, value: Option<&'a RawValue>) -> Result<&'a str, Problem<'a>> {
    value.map(RawValue::get).ok_or(Problem::Missing { field, hint: "" })
}

fn string<'a>(
    field: &'static str,
    value: Option<&'a RawValue>,
    hint: &'static str,
) -> Result<Cow<'a, str>, Problem<'a>> {
    let json = value.map(RawValue::get).ok_or(Problem::Missing { field, hint })?;
    if Kind::of(json) != Kind::String {
        return Err(wrong(Field::Plain(field), "a string", json));
    }
    match json.strip_prefix('"').and_then(|json| json.strip_suffix('"')) {
        Some(plain) if !plain.contains('\\') => Ok(Cow::Borrowed(plain)),
        _ => serde_json::from_str(json).map(Cow::Owned).map_err(Problem::NotJson),
    }
}

fn wrong<'a>(field: Field, expected: &'static str, found: &'a str) -> Problem<'a> {
    Problem::WrongKind { field, expected, found: Kind::of(found) }
}
