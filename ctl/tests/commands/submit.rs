//! `clusterctl submit`: what is sent, and what is said of it.

use std::io::Write;

use nightshift_ctl::output::{Screen, human, text::width, views::SubmitView};
use nightshift_proto::v1;

use super::{
    canned,
    fake::{Fake, World},
    program::{ask, ask_with_input, run},
};

const ROWS: &[u8] = b"{\"custom_id\":\"a\"}\n{\"custom_id\":\"b\"}\n";

fn file(content: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::Builder::new().prefix("rows").suffix(".jsonl").tempfile().unwrap();
    file.write_all(content).unwrap();
    file
}

fn path(file: &tempfile::NamedTempFile) -> &str {
    file.path().to_str().unwrap()
}

#[test]
fn a_file_goes_through_byte_for_byte() {
    let fake = Fake::start(World::healthy());
    // More than one message, and no newline at the end.
    let rows = b"{\"custom_id\":\"a\"}\n".repeat(50_000);
    let rows = rows.strip_suffix(b"\n").unwrap();
    let file = file(rows);
    let ended = ask(
        &fake,
        &["submit", path(&file), "--model", "org/m", "--name", "n", "--priority", "-3", "--batch", "4"],
    );
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
    insta::assert_snapshot!(ended.stdout, @r"
    Accepted as job j8 (n): 36 rows.
    Watch it: clusterctl watch j8 · Read its results: clusterctl results j8
    ");
    let submissions = fake.world.submissions.lock().unwrap();
    let (spec, data) = &submissions[0];
    assert_eq!((spec.model.as_str(), spec.name.as_str()), ("org/m", "n"));
    assert_eq!((spec.priority, spec.max_batch_rows, spec.default_max_tokens), (-3, 4, 0));
    assert_eq!(spec.submission_id.len(), 32);
    assert_eq!(data, rows);
}

#[test]
fn standard_input_has_no_name() {
    let fake = Fake::start(World::healthy());
    let ended = ask_with_input(&fake, &["submit", "-", "--model", "m"], ROWS);
    assert_eq!(ended.code, 0);
    let submissions = fake.world.submissions.lock().unwrap();
    assert_eq!((submissions[0].0.name.as_str(), submissions[0].1.as_slice()), ("", ROWS));
}

#[test]
fn prompts_become_rows() {
    let fake = Fake::start(World::healthy());
    let ended = ask_with_input(
        &fake,
        &[
            "submit",
            "--prompts",
            "-",
            "--model",
            "m",
            "--max-tokens",
            "9",
            "--temperature",
            "0",
            "--stop",
            "a",
            "--stop",
            "b",
        ],
        b"First?\n\nSecond?\r\n",
    );
    assert_eq!(ended.code, 0);
    let submissions = fake.world.submissions.lock().unwrap();
    assert_eq!(submissions[0].0.default_max_tokens, 9);
    insta::assert_snapshot!("prompts", String::from_utf8(submissions[0].1.clone()).unwrap());
}

#[test]
fn a_prompt_that_is_no_text_submits_nothing() {
    let fake = Fake::start(World::healthy());
    let ended = ask_with_input(&fake, &["submit", "--prompts", "-", "--model", "m"], b"ok\n\xff\xfe\n");
    assert_eq!((ended.code, ended.stdout.as_str()), (1, ""));
    insta::assert_snapshot!(ended.stderr, @r"
    error: Line 2 is not valid UTF-8 in standard input.
    hint:  Nothing was submitted. Convert the file to UTF-8 and submit it again.
    ");
    assert!(fake.world.submissions.lock().unwrap().is_empty());
}

#[test]
fn a_broken_connection_is_tried_once_more_with_the_same_number() {
    let fake = Fake::start(World { cut_submissions: 1, ..World::healthy() });
    let file = file(ROWS);
    let ended = ask(&fake, &["submit", path(&file), "--model", "m"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(ended.stderr, "The connection broke. Trying once more, under the same submission number.\n");
    let submissions = fake.world.submissions.lock().unwrap();
    assert_eq!(submissions.len(), 2);
    assert_eq!(submissions[0], submissions[1]);
}

#[test]
fn a_connection_that_breaks_twice_or_cannot_be_repeated_is_an_error() {
    let fake = Fake::start(World { cut_submissions: 9, ..World::healthy() });
    let file = file(ROWS);
    let ended = ask(&fake, &["submit", path(&file), "--model", "m", "--name", "n"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (2, ""));
    assert!(ended.stderr.contains("Whether the job was accepted is not known"), "{}", ended.stderr);
    assert_eq!(fake.world.submissions.lock().unwrap().len(), 2);

    let ended = ask_with_input(&fake, &["submit", "-", "--model", "m"], ROWS);
    assert_eq!(ended.code, 2);
    assert_eq!(fake.world.submissions.lock().unwrap().len(), 3);
}

#[test]
fn a_rejection_is_listed() {
    let view = |reply| SubmitView::new(reply, "line");
    let human = |reply: v1::SubmitReply, columns| {
        let text =
            human::submit::submitted(&view(reply), "prompts.jsonl", false, &Screen::plain(Some(columns)));
        for line in text.lines() {
            assert!(width(line) <= columns, "{line:?}");
        }
        text
    };
    insta::assert_snapshot!("rejected_wide", human(canned::rejection(), 100));
    insta::assert_snapshot!("rejected_narrow", human(canned::rejection(), 60));
    let empty = v1::SubmitReply {
        outcome: Some(v1::submit_reply::Outcome::Rejected(v1::Rejection {
            problem: "The input is empty.".into(),
            ..v1::Rejection::default()
        })),
    };
    insta::assert_snapshot!(human(empty, 60), @r"
    Refused: nothing of prompts.jsonl was kept.
    The input is empty.
    ");
}

#[test]
fn json_shapes() {
    let file = file(ROWS);
    let args = ["submit", path(&file), "--model", "m", "--name", "n", "--output", "json"];
    let accepted = ask(&Fake::start(World::healthy()), &args);
    assert_eq!(accepted.code, 0);
    insta::assert_json_snapshot!("json_accepted", accepted.json());

    let fake = Fake::start(World { submit_reply: Some(canned::rejection()), ..World::healthy() });
    let rejected = ask(&fake, &args);
    assert_eq!(rejected.code, 1);
    insta::assert_json_snapshot!("json_rejected", rejected.json());
}

#[test]
fn unreadable_input_is_found_before_anything_is_sent() {
    let ended = run(&["submit", "/nowhere/rows.jsonl", "--model", "m"]);
    assert_eq!(ended.code, 1);
    insta::assert_snapshot!(ended.stderr, @"error: Cannot read /nowhere/rows.jsonl: there is no such file.");
    let ended = run(&["submit", "/", "--model", "m"]);
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.starts_with("error: / is a directory."));
}

#[test]
fn watching_follows_the_submission() {
    let done = v1::Job { job_id: 8, ..canned::completed_job() };
    let world = World {
        snapshots: vec![v1::WatchJobsReply { jobs: vec![done], nodes: Vec::new() }],
        ..World::healthy()
    };
    let fake = Fake::start(world);
    let file = file(ROWS);
    let args = ["submit", path(&file), "--model", "m", "--watch"];
    let ended = ask(&fake, &args);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(ended.stdout.contains("is complete"), "{ended:?}");
    let lines = ask(&fake, &[&args[..], &["--output", "json"]].concat()).json_lines();
    assert_eq!(lines[0]["accepted"], true);
    assert_eq!(lines[1]["jobs"][0]["state"], "completed");
}
