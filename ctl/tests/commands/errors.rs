//! Errors that every command can meet.

use std::net::TcpListener;

use super::{
    fake::{Fake, World},
    program::{ask, command, ended, run},
};

/// A port that nothing listens on.
fn closed_port() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

fn without_port(text: &str, address: &str) -> String {
    text.replace(address, "127.0.0.1:PORT")
}

#[test]
fn an_unreachable_controller_is_a_sentence_with_what_was_tried_and_what_to_do() {
    let address = closed_port();
    let ended = run(&["status", "--controller", &address]);
    assert_eq!((ended.code, ended.stdout.as_str()), (2, ""));
    insta::assert_snapshot!("unreachable", without_port(&ended.stderr, &address));
}

#[test]
fn the_environment_names_a_controller_and_the_error_says_so() {
    let address = closed_port();
    let mut jobs = command(["jobs"]);
    jobs.env("NIGHTSHIFT_CONTROLLER", &address);
    let ended = ended(jobs);
    assert_eq!(ended.code, 2);
    insta::assert_snapshot!("unreachable_env", without_port(&ended.stderr, &address));
}

#[test]
fn errors_are_json_too_and_leave_stdout_empty() {
    let address = closed_port();
    let ended = run(&["status", "--output", "json", "--controller", &address]);
    assert_eq!((ended.code, ended.stdout.as_str()), (2, ""));
    let error: serde_json::Value = serde_json::from_str(&ended.stderr).unwrap();
    insta::assert_json_snapshot!("unreachable_json", error, {
        ".error.message" => insta::dynamic_redaction(|v, _| v.as_str().unwrap().split(':').next().unwrap().to_owned()),
        ".error.hint" => insta::dynamic_redaction(|v, _| v.as_str().unwrap().split('.').next().unwrap().to_owned()),
        ".error.tried" => "127.0.0.1:PORT, from --controller",
    });
}

#[test]
fn a_refusal_is_the_controllers_sentence_with_a_hint() {
    let fake = Fake::start(World::healthy());
    let ended = ask(&fake, &["job", "j99"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (1, ""));
    insta::assert_snapshot!(ended.stderr, @r"
    error: There is no job j99.
    hint:  All jobs: clusterctl jobs --all
    ");
    let ended = ask(&fake, &["drain", "mini-9"]);
    assert_eq!(ended.code, 1);
    insta::assert_snapshot!(ended.stderr, @r"
    error: There is no node mini-9.
    hint:  All nodes: clusterctl nodes
    ");
}

#[test]
fn something_that_speaks_no_grpc_is_an_error_not_a_hang() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = std::thread::spawn(move || {
        use std::io::{Read, Write};
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 16];
        let _ = stream.read(&mut request);
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
    });
    let ended = run(&["status", "--controller", &address]);
    server.join().unwrap();
    assert_eq!(ended.code, 2, "{ended:?}");
    assert!(ended.stderr.starts_with("error: "), "{ended:?}");
}
