//! Input that must be refused: by `clusterctl submit`, with line numbers and the exact reason, and nothing of it kept.

use std::{fs, path::PathBuf};

use nightshift_tests::{
    cluster::Cluster,
    process::Outcome,
    rng::Rng,
    suite::{Case, case},
};
use serde_json::{Value, json};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("bad_input::each_kind_of_broken_json_is_told", &[], || refused("broken-json", broken_json())),
        case("bad_input::each_wrong_field_of_a_row_is_told", &[], || refused("rows", wrong_rows())),
        case("bad_input::each_wrong_field_of_a_body_is_told", &[], || refused("bodies", wrong_bodies())),
        case("bad_input::bytes_that_are_no_text_are_told", &[], || refused("bytes", no_text())),
        case("bad_input::the_limits_are_told", &[], limits),
        case("bad_input::a_person_reads_sentences", &[], sentences),
        case("bad_input::only_the_first_twenty_are_listed_and_all_are_counted", &[], many),
        case("bad_input::binary_rubbish_is_refused", &[], rubbish),
        case("bad_input::what_looks_odd_and_is_right_is_accepted", &[], odd_and_right),
        case("bad_input::a_missing_file_is_told_without_a_controller", &[], no_file),
    ]
}

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

/// An input and what is wrong with it: lines with their problems.
struct Refusal {
    input: Vec<u8>,
    told: Vec<(u64, String)>,
}

/// An input of which one line is wrong.
fn wrong(input: impl Into<Vec<u8>>, line: u64, problem: &str) -> Refusal {
    Refusal { input: input.into(), told: vec![(line, problem.to_owned())] }
}

/// A single line and what is wrong with it.
fn line(line: &str, problem: &str) -> Refusal {
    wrong(format!("{line}\n"), 1, problem)
}

/// A row of this body and what is wrong with it.
fn body(url: &str, body: Value, problem: &str) -> Refusal {
    line(&row("a", "POST", url, body), problem)
}

/// A good row with this id.
pub(crate) fn good(id: &str) -> String {
    row(id, "POST", CHAT, messages())
}

fn messages() -> Value {
    json!({"messages": [{"role": "user", "content": "hm"}]})
}

fn row(id: &str, method: &str, url: &str, body: Value) -> String {
    json!({"custom_id": id, "method": method, "url": url, "body": body}).to_string()
}

/// A good row in which one field has another value, or, for `None`, is not there.
fn changed(field: &str, value: Option<Value>) -> String {
    let mut row: Value = serde_json::from_str(&good("a")).expect("a good row is JSON");
    match value {
        Some(value) => row[field] = value,
        None => _ = row.as_object_mut().expect("a row is an object").remove(field),
    }
    row.to_string()
}

/// Submits these bytes through the real client.
async fn submit(cluster: &Cluster, content: &[u8], more: &[&str]) -> Outcome {
    let file = cluster.path().join("input.jsonl");
    fs::write(&file, content).expect("the input can be written");
    let file = file.to_string_lossy().into_owned();
    cluster.ctl(&[&["submit", &file, "--model", "/models/none"], more].concat()).await
}

/// The refusal of these bytes, as programs get it: errors, their count, and a problem apart from lines.
async fn refusal(cluster: &Cluster, content: &[u8]) -> (Vec<(u64, String)>, u64, Option<String>) {
    let outcome = submit(cluster, content, &["--output", "json"]).await.expect_code(1);
    let told = outcome.json();
    assert_eq!(told["accepted"], false, "{told}");
    assert_eq!(told["counted_in"], "line", "{told}");
    assert!(outcome.stderr.is_empty(), "a refusal is the answer, not an error: {outcome:#?}");
    let error = |error: &Value| {
        let problem = error["problem"].as_str().expect("a problem is text");
        (error["line"].as_u64().expect("a line is a number"), problem.to_owned())
    };
    let errors = told["errors"].as_array().expect("errors are a list").iter().map(error).collect();
    let count = told["error_count"].as_u64().expect("the count is a number");
    (errors, count, told["problem"].as_str().map(str::to_owned))
}

/// Nothing of a refused submission stays: no job, no files.
pub(crate) async fn assert_nothing_kept(cluster: &Cluster) {
    let status = cluster.control().status().await;
    assert!(status.jobs.is_empty(), "a refused submission is no job: {:?}", status.jobs);
    let left: Vec<PathBuf> = fs::read_dir(cluster.controller_dir().join("jobs"))
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    assert!(left.is_empty(), "a refused submission leaves no files: {left:?}");
}

/// Submits each input and compares what is told of it, to the letter. All that differ are shown.
async fn refused(name: &str, table: Vec<Refusal>) {
    let cluster = Cluster::builder(name).start().await;
    let mut different = Vec::new();
    for Refusal { input, told } in table {
        let expected = (told.clone(), told.len() as u64, None);
        let found = refusal(&cluster, &input).await;
        if found != expected {
            let shown = String::from_utf8_lossy(&input[..input.len().min(300)]).into_owned();
            different.push(format!("{shown:?}:\n  was      {found:?}\n  expected {expected:?}"));
        }
    }
    assert!(different.is_empty(), "{} refusals differ:\n{}", different.len(), different.join("\n"));
    assert_nothing_kept(&cluster).await;
    cluster.finish().await;
}

fn broken_json() -> Vec<Refusal> {
    let good = good("a");
    vec![
        line("hello", "not valid JSON: expected value at column 1"),
        line("{", "not valid JSON: EOF while parsing an object at column 1"),
        line(r#"{"custom_id": "b", "#, "not valid JSON: EOF while parsing an object at column 19"),
        line(r#"{"custom_id": "b"#, "not valid JSON: EOF while parsing a string at column 16"),
        line(r#"{custom_id: "b"}"#, "not valid JSON: key must be a string at column 2"),
        line("{'custom_id': 'b'}", "not valid JSON: key must be a string at column 2"),
        line(r#"{"custom_id": "b",}"#, "not valid JSON: key must be a string at column 19"),
        line(r#"{"custom_id": "b" "url": 1}"#, "not valid JSON: expected `,` or `}` at column 19"),
        line(r#"{"custom_id": None}"#, "not valid JSON: expected value at column 15"),
        line(r#"{"custom_id": nul}"#, "not valid JSON: expected ident at column 18"),
        line(r#"{"custom_id": 01}"#, "not valid JSON: invalid number at column 16"),
        line(r#"{"custom_id": "\q"}"#, "not valid JSON: invalid escape at column 17"),
        line(
            "{\"custom_id\": \"a\tb\"}",
            "not valid JSON: control character (\\u0000-\\u001F) found while parsing a string at column 16",
        ),
        line(&format!("{good} {good}"), "not valid JSON: trailing characters at column 117"),
        line(&format!("{good},"), "not valid JSON: trailing characters at column 116"),
        wrong(format!("{good}\n\n{{\n"), 3, "not valid JSON: EOF while parsing an object at column 1"),
        // The file ends in the middle of a line, as an interrupted copy does.
        wrong(
            format!("{good}\n{}", &good[..60]),
            2,
            "not valid JSON: EOF while parsing a string at column 60",
        ),
        line("[1, 2]", "must be a JSON object, not an array"),
        line("\"text\"", "must be a JSON object, not a string"),
        line("17", "must be a JSON object, not a number"),
        line("true", "must be a JSON object, not a boolean"),
        line("null", "must be a JSON object, not null"),
        line(&"[".repeat(100_000), "not valid JSON: EOF while parsing a list at column 100000"),
        line(
            &good.replacen("hm\"", &format!("hm\", \"x\": {}1{}", "[".repeat(200), "]".repeat(200)), 1),
            "nested deeper than 128 levels",
        ),
    ]
}

fn wrong_rows() -> Vec<Refusal> {
    let (a, b) = (good("a"), good("b"));
    let long_url = format!("/v1/{}", "x".repeat(100));
    vec![
        wrong(format!("{a}\n{b}\n{a}\n"), 3, "custom_id \"a\" is already used on line 1"),
        wrong(format!("\n{a}\n\n{b}\n \n{b}\n"), 6, "custom_id \"b\" is already used on line 4"),
        Refusal {
            input: format!("{a}\n{a}\n{a}\n").into_bytes(),
            told: [2, 3].map(|line| (line, "custom_id \"a\" is already used on line 1".to_owned())).to_vec(),
        },
        // The same id, however it is spelt; and quoted so that it cannot steer a terminal.
        wrong(
            format!("{}\n{}\n", good("\u{1b}ä"), good("x").replacen("\"x\"", "\"\\u001b\\u00e4\"", 1)),
            2,
            "custom_id \"\\u{1b}ä\" is already used on line 1",
        ),
        line(&changed("custom_id", None), "custom_id is missing"),
        line(&changed("custom_id", Some(Value::Null)), "custom_id is missing"),
        line(&changed("custom_id", Some(json!(7))), "custom_id must be a string, not a number"),
        line(&changed("custom_id", Some(json!(true))), "custom_id must be a string, not a boolean"),
        line(&changed("custom_id", Some(json!(["a"]))), "custom_id must be a string, not an array"),
        line(&changed("custom_id", Some(json!({}))), "custom_id must be a string, not an object"),
        line(&changed("custom_id", Some(json!(""))), "custom_id is empty"),
        // The longest that may be, and one byte more.
        wrong(
            format!("{}\n{}\n", good(&"x".repeat(512)), good(&"x".repeat(513))),
            2,
            "custom_id is longer than 512 bytes",
        ),
        line(&a.replacen('{', "{\"custom_id\": \"z\", ", 1), "custom_id is given twice"),
        line(&changed("method", None), "method is missing: it must be \"POST\""),
        line(&changed("method", Some(json!(1))), "method must be a string, not a number"),
        line(&changed("method", Some(json!("GET"))), "method must be \"POST\", not \"GET\""),
        line(&changed("method", Some(json!("post"))), "method must be \"POST\", not \"post\""),
        line(&changed("url", None), "url is missing: use /v1/chat/completions or /v1/completions"),
        line(&changed("url", Some(json!({}))), "url must be a string, not an object"),
        line(
            &changed("url", Some(json!("/v1/embeddings"))),
            "url \"/v1/embeddings\" is not supported: use /v1/chat/completions or /v1/completions",
        ),
        line(
            &changed("url", Some(json!("https://api.openai.com/v1/chat/completions"))),
            "url \"https://api.openai.com/v1/chat/completions\" is not supported: use /v1/chat/completions or \
             /v1/completions",
        ),
        line(
            &changed("url", Some(json!(long_url))),
            &format!(
                "url \"{}…\" is not supported: use /v1/chat/completions or /v1/completions",
                &long_url[..64]
            ),
        ),
        line(&changed("body", None), "body is missing"),
        line(&changed("body", Some(Value::Null)), "body is missing"),
        line(&changed("body", Some(json!("hm"))), "body must be an object, not a string"),
        line(&changed("body", Some(json!([messages()]))), "body must be an object, not an array"),
    ]
}

fn wrong_bodies() -> Vec<Refusal> {
    let mut table = vec![
        body(CHAT, json!({}), "body.messages is missing"),
        body(CHAT, json!({"prompt": "hm"}), "body.messages is missing"),
        body(CHAT, json!({"messages": null}), "body.messages is missing"),
        body(CHAT, json!({"messages": "hm"}), "body.messages must be an array, not a string"),
        body(CHAT, json!({"messages": {}}), "body.messages must be an array, not an object"),
        body(CHAT, json!({"messages": []}), "body.messages is empty"),
        body(CHAT, json!({"messages": ["hm"]}), "body.messages[0] must be an object, not a string"),
        body(CHAT, json!({"messages": [{"content": "hm"}]}), "body.messages[0].role is missing"),
        body(
            CHAT,
            json!({"messages": [{"role": "user", "content": "hm"}, {"role": 7}]}),
            "body.messages[1].role must be a string, not a number",
        ),
        body(COMPLETIONS, json!({"max_tokens": 1}), "body.prompt is missing"),
        body(COMPLETIONS, messages(), "body.prompt is missing"),
        body(COMPLETIONS, json!({"prompt": 7}), "body.prompt must be a string or an array, not a number"),
        body(COMPLETIONS, json!({"prompt": {}}), "body.prompt must be a string or an array, not an object"),
    ];
    let mut fields = Vec::new();
    for field in ["max_tokens", "max_completion_tokens", "n"] {
        for (value, found) in [
            (json!(-1), "-1"),
            (json!(0), "0"),
            (json!(1.5), "1.5"),
            (json!(1e300), "1e+300"),
            (json!(true), "a boolean"),
            (json!("8"), "a string"),
            (json!([8]), "an array"),
            (json!({}), "an object"),
        ] {
            fields.push((field, value, format!("must be a whole number of at least 1, not {found}")));
        }
    }
    for field in ["temperature", "top_p", "min_p", "top_k", "seed", "presence_penalty", "frequency_penalty"] {
        for (value, found) in [
            (json!("hot"), "a string"),
            (json!(false), "a boolean"),
            (json!([0.5]), "an array"),
            (json!({}), "an object"),
        ] {
            fields.push((field, value, format!("must be a number, not {found}")));
        }
    }
    fields.push(("model", json!(7), "must be a string, not a number".to_owned()));
    for (number, (field, value, problem)) in fields.into_iter().enumerate() {
        let (url, mut request) =
            if number % 2 == 0 { (CHAT, messages()) } else { (COMPLETIONS, json!({"prompt": "hm"})) };
        request[field] = value;
        table.push(body(url, request, &format!("body.{field} {problem}")));
    }
    table
}

fn no_text() -> Vec<Refusal> {
    let mut latin1 = good("a").into_bytes();
    let at = latin1.windows(2).position(|pair| pair == b"hm").expect("the row says hm");
    latin1[at] = 0xfc;
    let utf16 = |mark: char, swap: fn(u16) -> [u8; 2]| -> Vec<u8> {
        format!("{mark}{}", good("a")).encode_utf16().flat_map(swap).collect()
    };
    let looks_like_utf16 = "not valid UTF-8: the file looks like UTF-16; save it as UTF-8";
    vec![
        wrong(latin1, 1, &format!("not valid UTF-8 at byte {}", at + 1)),
        wrong([good("a").as_bytes(), b"\n\xff\n"].concat(), 2, "not valid UTF-8 at byte 1"),
        wrong(utf16('\u{feff}', u16::to_le_bytes), 1, looks_like_utf16),
        wrong(utf16('\u{feff}', u16::to_be_bytes), 1, looks_like_utf16),
        // The first bytes of a gzip file, of a picture, of a program, of a zip.
        wrong(b"\x1f\x8b\x08\0\0\0\0\0", 1, "not valid UTF-8 at byte 2"),
        wrong(b"\x89PNG", 1, "not valid UTF-8 at byte 1"),
        wrong(b"\x7fELF\x02\x01\x01", 1, "not valid JSON: expected value at column 1"),
        wrong(b"PK\x03\x04", 1, "not valid JSON: expected value at column 1"),
        wrong(vec![0; 1 << 20], 1, "not valid JSON: expected value at column 1"),
        wrong(
            good("a").replacen("hm", "h\0m", 1),
            1,
            "not valid JSON: control character (\\u0000-\\u001F) found while parsing a string at column 34",
        ),
        line(
            &good("a").replacen("\"a\"", "\"\\ud800\"", 1),
            "not valid JSON: unexpected end of hex escape at column 8",
        ),
    ]
}

async fn limits() {
    let config = "[limits]\nmax_rows = 5\nmax_row_bytes = 2048\n";
    let cluster = Cluster::builder("limits").config(config).start().await;
    let rows = |count: usize| (0..count).map(|n| good(&format!("{n}")) + "\n").collect::<String>();
    let too_many = "the input has more than 5 rows, the most a job may have: submit it in parts";
    let no_rows = "the input has no rows";
    let too_long = "longer than 2 KiB, the most a row may have";
    let of_bytes = |bytes: usize| {
        let short = good("long");
        short.replacen("hm", &"h".repeat(bytes - short.len() + 2), 1) + "\n"
    };
    for (input, errors, problem) in [
        (String::new(), vec![], Some(no_rows)),
        ("\n\n \t\r\n".to_owned(), vec![], Some(no_rows)),
        ("\u{feff}".to_owned(), vec![], Some(no_rows)),
        (rows(6), vec![], Some(too_many)),
        (rows(5) + &"\n".repeat(3) + &rows(1), vec![], Some(too_many)),
        (
            format!("hello\n{}", rows(6)),
            vec![(1, "not valid JSON: expected value at column 1")],
            Some(too_many),
        ),
        (rows(1) + &of_bytes(2049), vec![(2, too_long)], None),
        (
            format!("{}hello\n", of_bytes(2049).repeat(2)),
            vec![(1, too_long), (2, too_long), (3, "not valid JSON: expected value at column 1")],
            None,
        ),
        // As long as may be, and the last of its lines wrong: only that is told.
        (of_bytes(2048) + "7\n", vec![(2, "must be a JSON object, not a number")], None),
    ] {
        let (told, count, other) = refusal(&cluster, input.as_bytes()).await;
        let told: Vec<(u64, &str)> = told.iter().map(|(line, problem)| (*line, problem.as_str())).collect();
        assert_eq!((told, count, other.as_deref()), (errors.clone(), errors.len() as u64, problem));
    }
    assert_nothing_kept(&cluster).await;
    let most = submit(&cluster, (rows(4) + &of_bytes(2048)).as_bytes(), &["--output", "json"]).await;
    assert_eq!(most.expect_code(0).json()["job"]["rows_total"], 5, "what the limits allow is accepted");
    cluster.finish().await;
}

async fn sentences() {
    let cluster = Cluster::builder("sentences").start().await;
    let file = cluster.path().join("input.jsonl").display().to_string();
    let (a, b) = (good("a"), good("b"));
    for (input, told) in [
        (String::new(), format!("Refused: nothing of {file} was kept.\nThe input has no rows.\n")),
        (
            format!("{a}\n{b}\n{a}\n"),
            format!(
                "Refused: nothing of {file} was kept. 1 line is wrong.\n  \
                 line 3  custom_id \"a\" is already used on line 1\n"
            ),
        ),
        (
            format!("{}{}\n{{\n", "\n".repeat(8), changed("method", Some(json!("GET")))),
            format!(
                "Refused: nothing of {file} was kept. 2 lines are wrong.\n  \
                 line  9  method must be \"POST\", not \"GET\"\n  \
                 line 10  not valid JSON: EOF while parsing an object at column 1\n"
            ),
        ),
    ] {
        let outcome = submit(&cluster, input.as_bytes(), &[]).await.expect_code(1);
        assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), (told.as_str(), ""));
    }
    assert_nothing_kept(&cluster).await;
    cluster.finish().await;
}

async fn many() {
    let cluster = Cluster::builder("many").start().await;
    let mut text = String::new();
    for number in 0..100 {
        text.push_str(&good(&format!("row-{number}")));
        text.push_str("\n{broken\n");
    }
    let problem = "not valid JSON: key must be a string at column 2";
    let first: Vec<(u64, String)> = (1..=20).map(|number| (2 * number, problem.to_owned())).collect();
    assert_eq!(refusal(&cluster, text.as_bytes()).await, (first.clone(), 100, None));
    let told = submit(&cluster, text.as_bytes(), &[]).await.expect_code(1).stdout;
    let mut lines = told.lines();
    assert!(lines.next().is_some_and(|line| line.ends_with(" was kept. 100 lines are wrong.")), "{told}");
    for (number, problem) in first {
        assert_eq!(lines.next(), Some(format!("  line {number:>2}  {problem}").as_str()), "{told}");
    }
    assert_eq!(lines.collect::<Vec<_>>(), ["  … and 80 more."], "{told}");
    assert_nothing_kept(&cluster).await;
    cluster.finish().await;
}

async fn rubbish() {
    let cluster = Cluster::builder("rubbish").start().await;
    let mut rng = Rng::new(1);
    let noise: Vec<u8> = (0..3 << 20).map(|_| rng.bits() as u8).collect();
    let lines = noise.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty()).count();
    let (errors, count, problem) = refusal(&cluster, &noise).await;
    assert_eq!((errors.len(), count, problem), (20, lines as u64, None), "no line of noise is a row");
    for (line, problem) in errors {
        let known = ["not valid UTF-8 at byte ", "not valid JSON: expected value at column 1"];
        assert!(known.iter().any(|start| problem.starts_with(start)), "line {line}: {problem}");
    }
    let told = submit(&cluster, &noise, &[]).await.expect_code(1).told();
    assert!(
        told.chars().all(|c| c == '\n' || !c.is_control()),
        "noise is not printed raw to a person's terminal: {told:?}"
    );
    assert_nothing_kept(&cluster).await;
    cluster.finish().await;
}

async fn odd_and_right() {
    let cluster = Cluster::builder("odd-and-right").start().await;
    let null = json!({"messages": [{"role": "user", "content": "hm"}], "max_tokens": null, "temperature": null,
        "top_p": null, "n": null, "seed": null, "stop": null, "model": null});
    let input = format!(
        "\u{feff}{}\r\n\n \t\r\n  {}  \n{}\n{}\n{}",
        good("a"),
        good("ä\n\0"),
        row("null", "POST", CHAT, null),
        good("more").replacen('{', "{\"comment\": [{}, 1], ", 1),
        good("without a line break")
    );
    let accepted = submit(&cluster, input.as_bytes(), &["--output", "json"]).await.expect_code(0).json();
    assert_eq!(accepted["job"]["rows_total"], 5, "{accepted}");
    assert_eq!((&accepted["accepted"], &accepted["error_count"]), (&json!(true), &json!(0)), "{accepted}");
    cluster.finish().await;
}

async fn no_file() {
    let cluster = Cluster::builder("no-file").start().await;
    let mut nobody = cluster.ctl_command(&["submit", "/no/such/file.jsonl", "--model", "/models/none"]);
    nobody.args(["--controller", "127.0.0.1:1"]);
    let outcome = nightshift_tests::process::run(nobody).await.expect_code(1);
    assert_eq!(outcome.stderr, "error: Cannot read /no/such/file.jsonl: there is no such file.\n");
    assert!(outcome.stdout.is_empty(), "{outcome:#?}");
    cluster.finish().await;
}
