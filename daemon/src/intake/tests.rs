//! Every refusal by its exact words, and what passes.

use std::{fs, path::Path};

use proptest::prelude::*;

use super::*;
use crate::{ledger::InputReader, model::RowIx};

const CHAT: &str =
    r#""method":"POST","url":"/v1/chat/completions","body":{"messages":[{"role":"user","content":"hi"}]}"#;

fn limits() -> Limits {
    Limits { disk_reserve_bytes: 0, ..Limits::default() }
}

fn submit(dir: &Path, limits: Limits, input: &[u8], chunk_bytes: usize) -> Result<Staged, Rejection> {
    let mut intake = Intake::begin(dir, limits).unwrap();
    input.chunks(chunk_bytes.max(1)).for_each(|chunk| intake.push(chunk).unwrap());
    intake.finish().map_err(|refused| match refused {
        Refused::Rejected(rejection) => rejection,
        Refused::Failed(error) => panic!("{error}"),
    })
}

fn rejected(input: &[u8]) -> Rejection {
    let dir = tempfile::tempdir().unwrap();
    let rejection = submit(dir.path(), limits(), input, usize::MAX).unwrap_err();
    assert_eq!(fs::read_dir(dir.path().join("jobs")).unwrap().count(), 0, "something was kept");
    rejection
}

fn row(custom_id: &str) -> String {
    format!("{{\"custom_id\":\"{custom_id}\",{CHAT}}}\n")
}

/// The one problem of a line that follows a good one.
fn problem(line: &str) -> String {
    let rejection = rejected(format!("{}{line}\n", row("good")).as_bytes());
    assert_eq!((rejection.error_count, rejection.problem, rejection.errors.len()), (1, None, 1));
    assert_eq!(rejection.errors[0].line, 2);
    rejection.errors[0].problem.clone()
}

fn body_problem(url: &str, body: &str) -> String {
    problem(&format!(r#"{{"custom_id":"a","method":"POST","url":"/v1/{url}","body":{body}}}"#))
}

#[test]
fn rows_that_pass_are_kept_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let lines = [
        format!("{{\"custom_id\":\"a\",{CHAT}}}"),
        format!("  {{ \"custom_id\" : \"b\\u00e4\\n\" , {CHAT} , \"extra\": [1, {{}}] }} "),
        r#"{"body":{"prompt":["a","b"],"max_tokens":1,"temperature":0.5,"seed":-1,"stop":null,"top_p":null},"url":"/v1/completions","method":"POST","custom_id":"c"}"#.into(),
        r#"{"custom_id":"d","method":"POST","url":"/v1/completions","body":{"prompt":"","stream":true,"n":2,"model":"m"}}"#.into(),
    ];
    let input = format!("\u{feff}{}\r\n\n{}\n \t\r\n{}\n\n{}", lines[0], lines[1], lines[2], lines[3]);
    let staged = submit(dir.path(), limits(), input.as_bytes(), usize::MAX).unwrap();
    let total: usize = lines.iter().map(|line| line.len() + 1).sum();
    assert_eq!((staged.rows_total, staged.bytes), (4, total as u64));
    let directory = dir.path().join("jobs").join(staged.directory_name());
    let reader = InputReader::open(&directory, 4).unwrap();
    for (row, line) in (0..).zip(&lines) {
        assert_eq!(reader.read(RowIx(row)).unwrap(), line.as_str());
    }
    drop(staged);
    assert!(!directory.exists());
}

#[test]
fn lines_are_refused_with_what_is_wrong() {
    assert_eq!(problem(r#"{"custom_id":"a""#), "not valid JSON: EOF while parsing an object at column 16");
    assert_eq!(problem("{'custom_id':1}"), "not valid JSON: key must be a string at column 2");
    assert_eq!(
        problem(&format!("{} x", row("a").trim_end())),
        "not valid JSON: trailing characters at column 117"
    );
    assert_eq!(problem("[1,2]"), "must be a JSON object, not an array");
    assert_eq!(problem("\"text\""), "must be a JSON object, not a string");
    assert_eq!(problem("17"), "must be a JSON object, not a number");
    assert_eq!(
        problem(&format!("{{\"custom_id\":\"a\",\"custom_id\":\"b\",{CHAT}}}")),
        "custom_id is given twice"
    );
    assert_eq!(problem(&format!("{{{CHAT}}}")), "custom_id is missing");
    assert_eq!(problem(&format!("{{\"custom_id\":null,{CHAT}}}")), "custom_id is missing");
    assert_eq!(problem(&format!("{{\"custom_id\":7,{CHAT}}}")), "custom_id must be a string, not a number");
    assert_eq!(problem(&format!("{{\"custom_id\":\"\",{CHAT}}}")), "custom_id is empty");
    assert_eq!(
        problem(&format!("{{\"custom_id\":\"{}\",{CHAT}}}", "x".repeat(513))),
        "custom_id is longer than 512 bytes"
    );
    assert_eq!(problem(row("good").trim_end()), "custom_id \"good\" is already used on line 1");
    assert_eq!(
        problem(r#"{"custom_id":"a","url":"/v1/completions","body":{"prompt":""}}"#),
        "method is missing: it must be \"POST\""
    );
    assert_eq!(
        problem(r#"{"custom_id":"a","method":"GET","url":"/v1/completions","body":{"prompt":""}}"#),
        "method must be \"POST\", not \"GET\""
    );
    assert_eq!(
        problem(r#"{"custom_id":"a","method":"POST","body":{"prompt":""}}"#),
        "url is missing: use /v1/chat/completions or /v1/completions"
    );
    assert_eq!(
        body_problem("embeddings", "{}"),
        "url \"/v1/embeddings\" is not supported: use /v1/chat/completions or /v1/completions"
    );
    assert_eq!(
        body_problem(&"x".repeat(100), "{}"),
        format!(
            "url \"/v1/{}…\" is not supported: use /v1/chat/completions or /v1/completions",
            "x".repeat(60)
        )
    );
    assert_eq!(problem(r#"{"custom_id":"a","method":"POST","url":"/v1/completions"}"#), "body is missing");
    assert_eq!(body_problem("completions", "\"text\""), "body must be an object, not a string");
}

#[test]
fn bodies_are_refused_with_what_is_wrong() {
    let chat = |body: &str| body_problem("chat/completions", body);
    assert_eq!(chat("{}"), "body.messages is missing");
    assert_eq!(chat(r#"{"messages":"hi"}"#), "body.messages must be an array, not a string");
    assert_eq!(chat(r#"{"messages":[]}"#), "body.messages is empty");
    assert_eq!(
        chat(r#"{"messages":[{"role":"user"},"hi",{}]}"#),
        "body.messages[1] must be an object, not a string"
    );
    assert_eq!(chat(r#"{"messages":[{"content":"hi"}]}"#), "body.messages[0].role is missing");
    assert_eq!(
        chat(r#"{"messages":[{"role":"a"},{"role":1}]}"#),
        "body.messages[1].role must be a string, not a number"
    );
    let text = |body: &str| body_problem("completions", body);
    assert_eq!(text(r#"{"prompt":"a","prompt":"b"}"#), "prompt is given twice");
    assert_eq!(text("{}"), "body.prompt is missing");
    assert_eq!(text(r#"{"prompt":7}"#), "body.prompt must be a string or an array, not a number");
    for (field, value, expected) in [
        ("max_tokens", "0", "must be a whole number of at least 1, not 0"),
        ("max_tokens", "-5", "must be a whole number of at least 1, not -5"),
        ("max_tokens", "1.5", "must be a whole number of at least 1, not 1.5"),
        ("max_tokens", "\"9\"", "must be a whole number of at least 1, not a string"),
        ("max_completion_tokens", "[]", "must be a whole number of at least 1, not an array"),
        ("n", "0", "must be a whole number of at least 1, not 0"),
        ("temperature", "\"hot\"", "must be a number, not a string"),
        ("top_p", "true", "must be a number, not a boolean"),
        ("min_p", "{}", "must be a number, not an object"),
        ("top_k", "\"1\"", "must be a number, not a string"),
        ("seed", "\"1\"", "must be a number, not a string"),
        ("presence_penalty", "[]", "must be a number, not an array"),
        ("frequency_penalty", "\"\"", "must be a number, not a string"),
        ("model", "7", "must be a string, not a number"),
    ] {
        let found = text(&format!(r#"{{"prompt":"p","{field}":{value}}}"#));
        assert_eq!(found, format!("body.{field} {expected}"));
    }
}

#[test]
fn rubbish_is_refused_with_what_is_wrong() {
    let second = |line: &[u8]| {
        let rejection = rejected(&[row("good").as_bytes(), line, b"\n"].concat());
        (rejection.errors[0].line, rejection.errors[0].problem.clone())
    };
    assert_eq!(second(b"{\"a\":\"\xff\"}"), (2, "not valid UTF-8 at byte 7".into()));
    assert_eq!(second(b"\0\0\0\0"), (2, "not valid JSON: expected value at column 1".into()));
    assert_eq!(
        second(b"{\"custom_id\":\"\0\"}"),
        (
            2,
            "not valid JSON: control character (\\u0000-\\u001F) found while parsing a string at column 14"
                .into()
        )
    );
    let elf: Vec<u8> = (0..=255).cycle().take(10_000).collect();
    assert!(second(&elf).1.starts_with("not valid "));
    let utf16: Vec<u8> = "\u{feff}{}".encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert_eq!(
        rejected(&utf16).errors[0].problem,
        "not valid UTF-8: the file looks like UTF-16; save it as UTF-8"
    );
}

#[test]
fn deep_nesting_is_refused_without_recursion() {
    let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    let body = |levels: usize| format!(r#"{{"prompt":"p","x":{}}}"#, nested(levels));
    assert_eq!(body_problem("completions", &body(127)), "nested deeper than 128 levels");
    assert_eq!(body_problem("completions", &body(3_000_000)), "nested deeper than 128 levels");
    assert_eq!(problem(&"[".repeat(3_000_000)), "not valid JSON: EOF while parsing a list at column 3000000");
    let dir = tempfile::tempdir().unwrap();
    let line = format!(r#"{{"custom_id":"a","method":"POST","url":"/v1/completions","body":{}}}"#, body(126));
    assert!(submit(dir.path(), limits(), line.as_bytes(), usize::MAX).is_ok());
}

#[test]
fn an_input_without_rows_is_refused() {
    for input in ["", "\n\n  \r\n", "\u{feff}"] {
        let expected = Rejection { problem: Some("the input has no rows".into()), ..Rejection::default() };
        assert_eq!(rejected(input.as_bytes()), expected);
    }
}

#[test]
fn the_first_twenty_errors_are_told_and_all_are_counted() {
    let mut input = String::new();
    for line in 0..1_000 {
        input += &if line % 2 == 0 { row(&format!("r{line}")) } else { format!("bad {line}\n") };
    }
    input += &row("r0");
    let rejection = rejected(input.as_bytes());
    assert_eq!((rejection.error_count, rejection.errors.len(), rejection.problem), (501, 20, None));
    let lines: Vec<_> = rejection.errors.iter().map(|error| error.line).collect();
    assert_eq!(lines, (1..=20).map(|n| 2 * n).collect::<Vec<_>>());
}

#[test]
fn too_many_rows_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let input: String = (0..4).map(|n| row(&format!("r{n}"))).collect();
    let limits = Limits { max_rows: 3, ..limits() };
    let rejection = submit(dir.path(), limits, input.as_bytes(), usize::MAX).unwrap_err();
    assert_eq!(
        rejection.problem.as_deref(),
        Some("the input has more than 3 rows, the most a job may have: submit it in parts")
    );
    assert_eq!(fs::read_dir(dir.path().join("jobs")).unwrap().count(), 0);
    let limits = Limits { max_rows: 4, ..limits };
    assert_eq!(
        submit(dir.path(), limits, format!("{input}\n\n").as_bytes(), usize::MAX).unwrap().rows_total,
        4
    );
}

#[test]
fn a_line_that_is_too_long_takes_no_memory() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { max_row_bytes: 1 << 20, ..limits() };
    let mut intake = Intake::begin(dir.path(), limits).unwrap();
    intake.push(row("a").as_bytes()).unwrap();
    let chunk = vec![b'x'; 64 * 1024];
    for _ in 0..(256 << 20) / chunk.len() {
        intake.push(&chunk).unwrap();
        assert!(intake.held_bytes() <= 4 << 20, "{} bytes are held", intake.held_bytes());
    }
    intake.push(b"\nbad\n").unwrap();
    intake.push(&chunk).unwrap();
    let Err(Refused::Rejected(rejection)) = intake.finish() else { panic!("it was taken") };
    let told: Vec<_> = rejection.errors.iter().map(|error| (error.line, error.problem.as_str())).collect();
    let not_json = "not valid JSON: expected value at column 1";
    assert_eq!(told, [(2, "longer than 1 MiB, the most a row may have"), (3, not_json), (4, not_json)]);

    // Exactly as long as allowed, with a carriage return that does not count; and one byte more.
    let line = |bytes: usize| {
        let empty = r#"{"custom_id":"a","method":"POST","url":"/v1/completions","body":{"prompt":""}}"#;
        empty.replace("\"prompt\":\"", &format!("\"prompt\":\"{}", "p".repeat(bytes - empty.len())))
    };
    for chunk_bytes in [1 << 14, usize::MAX] {
        let fits = format!("{}\r\n", line(1 << 20));
        assert!(submit(dir.path(), limits, fits.as_bytes(), chunk_bytes).is_ok());
        let rejection = submit(dir.path(), limits, line((1 << 20) + 1).as_bytes(), chunk_bytes).unwrap_err();
        assert_eq!(rejection.errors[0].problem, "longer than 1 MiB, the most a row may have");
    }
}

#[test]
fn no_room_is_said_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let error = Intake::begin(dir.path(), Limits { disk_reserve_bytes: u64::MAX, ..limits() }).unwrap_err();
    assert!(error.is_disk_full());
    let text = error.to_string();
    assert!(text.starts_with("the submission does not fit on the disk that holds "), "{text}");
    assert!(text.ends_with("are kept in reserve; free some space"), "{text}");
    assert_eq!(fs::read_dir(dir.path().join("jobs")).unwrap().count(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn how_the_input_is_cut_makes_no_difference(
        kinds in prop::collection::vec(0_usize..6, 0..30),
        chunk_bytes in 1_usize..200,
        ends in any::<bool>(),
    ) {
        let mut input = String::new();
        for (n, kind) in kinds.iter().enumerate() {
            input += &match kind {
                0 => "\n".into(),
                1 => row(&format!("r{n}")).replace('\n', "\r\n"),
                2 if n % 7 == 0 => row("same"),
                3 if n % 5 == 0 => "bad\n".into(),
                4 if n % 5 == 0 => format!("{}\n", "x".repeat(500)),
                _ => row(&format!("r{n}")),
            };
        }
        if !ends {
            input.truncate(input.trim_end_matches('\n').len());
        }
        let dir = tempfile::tempdir().unwrap();
        let limits = Limits { max_row_bytes: 300, ..limits() };
        let whole = submit(dir.path(), limits, input.as_bytes(), usize::MAX);
        let cut = submit(dir.path(), limits, input.as_bytes(), chunk_bytes);
        match (whole, cut) {
            (Ok(whole), Ok(cut)) => {
                prop_assert_eq!(
                    (whole.rows_total, whole.bytes, whole.lengths),
                    (cut.rows_total, cut.bytes, cut.lengths)
                );
                for file in ["input.jsonl", "input.idx"] {
                    let read = |staged: &Staged| fs::read(dir.path().join("jobs").join(staged.directory_name()).join(file)).unwrap();
                    prop_assert_eq!(read(&whole), read(&cut));
                }
            }
            (Err(whole), Err(cut)) => prop_assert_eq!(whole, cut),
            other => prop_assert!(false, "{:?}", other),
        }
    }

    #[test]
    fn nothing_makes_it_panic(input in prop::collection::vec(any::<u8>(), 0..400), chunk_bytes in 1_usize..50) {
        let dir = tempfile::tempdir().unwrap();
        let _ = submit(dir.path(), limits(), &input, chunk_bytes);
    }

    #[test]
    fn nearly_right_rows_do_not_make_it_panic(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let dir = tempfile::tempdir().unwrap();
        let mut input = row("a").into_bytes();
        let at = at.index(input.len());
        input[at] = byte;
        let _ = submit(dir.path(), limits(), &input, usize::MAX);
    }
}
