//! `--prompts FILE`: plain lines into rows of the OpenAI Batch form, as they stream by.
//!
//! Works on pieces of any size and never holds a line: memory does not grow with the file nor with its longest line.

use serde_json::{Value, json};

/// Between two hand-overs at most so much input is converted at once, so that output is at most six times that (every
/// byte escaped as \u00XX) and a row's frame.
const PIECE_BYTES: usize = 16 * 1024;

/// White space at the beginning of a line is held back until something follows it: a line of nothing else is blank.
/// Longer white space than this is text.
const MAX_HELD_BYTES: usize = 64 * 1024;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// What every row gets besides its prompt.
#[derive(Debug, Clone, Default)]
pub struct RowDefaults {
    /// `body.model`
    pub model: String,
    /// /v1/completions in place of /v1/chat/completions.
    pub completions: bool,
    /// A system message before each prompt (chat only).
    pub system: Option<String>,
    /// Sampling and limits, as OpenAI has them; what is not given is left out.
    pub max_tokens: Option<u32>,
    /// 0 is greedy.
    pub temperature: Option<f64>,
    /// Nucleus sampling.
    pub top_p: Option<f64>,
    /// The same for every row.
    pub seed: Option<u64>,
    /// Ends an answer.
    pub stop: Vec<String>,
}

impl RowDefaults {
    /// What stands in a row between its id and its prompt, and after its prompt.
    fn frame(&self) -> (String, String) {
        let url = if self.completions { "/v1/completions" } else { "/v1/chat/completions" };
        let mut before =
            format!("\",\"method\":\"POST\",\"url\":\"{url}\",\"body\":{{\"model\":{},", json!(self.model));
        let mut after = String::from("\"");
        if self.completions {
            before.push_str("\"prompt\":\"");
        } else {
            before.push_str("\"messages\":[");
            if let Some(system) = &self.system {
                before.push_str(&format!("{{\"role\":\"system\",\"content\":{}}},", json!(system)));
            }
            before.push_str("{\"role\":\"user\",\"content\":\"");
            after.push_str("}]");
        }
        let mut field = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                after.push_str(&format!(",\"{name}\":{value}"));
            }
        };
        field("max_tokens", self.max_tokens.map(Value::from));
        field("temperature", self.temperature.map(Value::from));
        field("top_p", self.top_p.map(Value::from));
        field("seed", self.seed.map(Value::from));
        field("stop", (!self.stop.is_empty()).then(|| json!(self.stop)));
        after.push_str("}}\n");
        (before, after)
    }
}

/// A line that is not text.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("Line {line} is not valid UTF-8")]
pub struct NotText {
    /// From 1, blank lines counted.
    pub line: u64,
}

/// Turns lines into rows.
#[derive(Debug)]
pub struct Converter {
    before: String,
    after: String,
    /// Rows begun so far; the custom_id counts them from 1.
    rows: u64,
    line: u64,
    in_row: bool,
    held: Vec<u8>,
    /// The beginning of a character that the last piece cut.
    cut_char: Vec<u8>,
    /// A carriage return that belongs to the end of the line, if that is what follows.
    held_return: bool,
}

impl Converter {
    /// At the beginning of a file.
    pub fn new(defaults: &RowDefaults) -> Self {
        let (before, after) = defaults.frame();
        Converter {
            before,
            after,
            rows: 0,
            line: 1,
            in_row: false,
            held: Vec::new(),
            cut_char: Vec::new(),
            held_return: false,
        }
    }

    /// Converts some of `input` to the end of `out` and returns how many bytes it took: at least one unless `input` is
    /// empty, and never more than a line or 16 KiB.
    pub fn feed(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<usize, NotText> {
        let piece = &input[..input.len().min(PIECE_BYTES)];
        match piece.iter().position(|byte| *byte == b'\n') {
            Some(end) => {
                self.text(&piece[..end], out)?;
                self.end_line(out)?;
                Ok(end + 1)
            }
            None => {
                self.text(piece, out)?;
                Ok(piece.len())
            }
        }
    }

    /// The file has ended; its last line may lack a newline.
    pub fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), NotText> {
        self.end_line(out)
    }

    fn text(&mut self, mut piece: &[u8], out: &mut Vec<u8>) -> Result<(), NotText> {
        if !self.in_row {
            if self.line == 1 && self.held.is_empty() {
                piece = piece.strip_prefix(BYTE_ORDER_MARK).unwrap_or(piece);
            }
            let blank = piece.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
            let blank = blank.min(MAX_HELD_BYTES - self.held.len());
            self.held.extend_from_slice(&piece[..blank]);
            piece = &piece[blank..];
            if piece.is_empty() {
                return Ok(());
            }
            self.begin_row(out);
        }
        if piece.is_empty() {
            return Ok(());
        }
        if std::mem::take(&mut self.held_return) {
            escape("\r", out);
        }
        if let Some(rest) = piece.strip_suffix(b"\r") {
            self.held_return = true;
            piece = rest;
        }
        self.characters(piece, out)
    }

    fn begin_row(&mut self, out: &mut Vec<u8>) {
        self.in_row = true;
        self.rows += 1;
        out.extend_from_slice(format!("{{\"custom_id\":\"prompt-{:06}", self.rows).as_bytes());
        out.extend_from_slice(self.before.as_bytes());
        let held = std::mem::take(&mut self.held);
        escape(&String::from_utf8_lossy(&held), out);
    }

    /// Escapes text whose pieces may cut a character in two.
    fn characters(&mut self, mut piece: &[u8], out: &mut Vec<u8>) -> Result<(), NotText> {
        let not_text = NotText { line: self.line };
        while !self.cut_char.is_empty() {
            let Some((first, rest)) = piece.split_first() else { return Ok(()) };
            self.cut_char.push(*first);
            piece = rest;
            match std::str::from_utf8(&self.cut_char) {
                Ok(c) => {
                    escape(c, out);
                    self.cut_char.clear();
                }
                Err(e) if e.error_len().is_some() => return Err(not_text),
                Err(_) => {}
            }
        }
        match std::str::from_utf8(piece) {
            Ok(text) => escape(text, out),
            Err(e) if e.error_len().is_some() => return Err(not_text),
            Err(e) => {
                let (text, cut) = piece.split_at(e.valid_up_to());
                escape(&String::from_utf8_lossy(text), out);
                self.cut_char.extend_from_slice(cut);
            }
        }
        Ok(())
    }

    fn end_line(&mut self, out: &mut Vec<u8>) -> Result<(), NotText> {
        if !self.cut_char.is_empty() {
            return Err(NotText { line: self.line });
        }
        if self.in_row {
            out.extend_from_slice(self.after.as_bytes());
        }
        self.in_row = false;
        self.held_return = false;
        self.held.clear();
        self.line += 1;
        Ok(())
    }
}

/// The inside of a JSON string.
fn escape(text: &str, out: &mut Vec<u8>) {
    for byte in text.bytes() {
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0..0x20 => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            _ => out.push(byte),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `input` in pieces of `piece_bytes`.
    fn convert(defaults: &RowDefaults, input: &[u8], piece_bytes: usize) -> Result<String, NotText> {
        let mut converter = Converter::new(defaults);
        let mut out = Vec::new();
        for piece in input.chunks(piece_bytes) {
            let mut rest = piece;
            while !rest.is_empty() {
                let taken = converter.feed(rest, &mut out)?;
                assert!(taken > 0);
                rest = &rest[taken..];
            }
        }
        converter.finish(&mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    fn prompts(rows: &str) -> Vec<(String, String)> {
        rows.lines()
            .map(|line| {
                let row: Value = serde_json::from_str(line).unwrap();
                let prompt = row["body"]["messages"].as_array().unwrap().last().unwrap()["content"].clone();
                (row["custom_id"].as_str().unwrap().to_owned(), prompt.as_str().unwrap().to_owned())
            })
            .collect()
    }

    #[test]
    fn rows_are_what_openai_batch_expects() {
        let chat = RowDefaults {
            model: "org/model".into(),
            system: Some("Be \"brief\".".into()),
            max_tokens: Some(64),
            temperature: Some(0.0),
            top_p: Some(0.9),
            seed: Some(7),
            stop: vec!["\n\n".into()],
            ..RowDefaults::default()
        };
        insta::assert_snapshot!(convert(&chat, b"Why?\n", 64).unwrap(), @r#"{"custom_id":"prompt-000001","method":"POST","url":"/v1/chat/completions","body":{"model":"org/model","messages":[{"role":"system","content":"Be \"brief\"."},{"role":"user","content":"Why?"}],"max_tokens":64,"temperature":0.0,"top_p":0.9,"seed":7,"stop":["\n\n"]}}"#);
        let text = RowDefaults { model: "m".into(), completions: true, ..RowDefaults::default() };
        insta::assert_snapshot!(convert(&text, b"Once upon", 64).unwrap(), @r#"{"custom_id":"prompt-000001","method":"POST","url":"/v1/completions","body":{"model":"m","prompt":"Once upon"}}"#);
    }

    #[test]
    fn any_cut_gives_the_same_rows_and_nothing_of_a_prompt_is_changed() {
        let input = "\u{feff}first\r\n\r\n   \n\t indented \"quoted\" \\back\t\u{1}\n夜勤 — é😀\n\nlast\rhas a return";
        let whole = convert(&RowDefaults::default(), input.as_bytes(), input.len()).unwrap();
        for piece_bytes in 3..input.len() {
            assert_eq!(convert(&RowDefaults::default(), input.as_bytes(), piece_bytes).unwrap(), whole);
        }
        let expected = ["first", "\t indented \"quoted\" \\back\t\u{1}", "夜勤 — é😀", "last\rhas a return"];
        let got = prompts(&whole);
        for (i, (id, prompt)) in got.iter().enumerate() {
            assert_eq!(id, &format!("prompt-{:06}", i + 1));
            assert_eq!(prompt, expected[i]);
        }
        assert_eq!(got.len(), expected.len());
    }

    #[test]
    fn blank_input_gives_no_rows() {
        assert_eq!(convert(&RowDefaults::default(), b"", 1).unwrap(), "");
        assert_eq!(convert(&RowDefaults::default(), b" \r\n\n\t\n", 2).unwrap(), "");
    }

    #[test]
    fn text_that_is_none_is_refused_with_its_line() {
        for piece_bytes in 1..8 {
            let bad = |input: &[u8]| convert(&RowDefaults::default(), input, piece_bytes).unwrap_err();
            assert_eq!(bad(b"ok\n\nbad \xff here\n"), NotText { line: 3 });
            assert_eq!(bad(b"cut \xe5\xa4\n"), NotText { line: 1 });
            assert_eq!(bad(b"cut at the end \xe5"), NotText { line: 1 });
        }
    }

    #[test]
    fn a_line_without_end_does_not_pile_up() {
        let mut converter = Converter::new(&RowDefaults::default());
        let block = vec![b' '; 1 << 20];
        let mut out = Vec::new();
        for _ in 0..16 {
            let mut rest = block.as_slice();
            while !rest.is_empty() {
                let taken = converter.feed(rest, &mut out).unwrap();
                rest = &rest[taken..];
                assert!(out.len() <= 8 * PIECE_BYTES + MAX_HELD_BYTES);
                out.clear();
            }
        }
        assert!(converter.held.capacity() <= 2 * MAX_HELD_BYTES);
    }
}
