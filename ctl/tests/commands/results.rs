//! `clusterctl results`: what it prints, and when it ends.

use std::process::Stdio;

use super::{
    canned,
    fake::{Fake, World},
    program::{ask, command},
};

const CHUNKS: [&str; 3] = ["{\"id\":1}\n{\"id\":2}\n", "{\"id\":3}\n", "{\"id\":4}\n"];

#[test]
fn bytes_go_through_as_they_are() {
    let fake = Fake::start(World { results: CHUNKS.into(), ..World::healthy() });
    for extra in [&[][..], &["--output", "json"], &["--errors"]] {
        let ended = ask(&fake, &[&["results", "j7"], extra].concat());
        assert_eq!((ended.code, ended.stdout), (0, CHUNKS.concat()));
        assert_eq!(ended.stderr, "");
    }
    assert_eq!(fake.world.asked()[2], "results follow=false errors=true");
}

#[test]
fn a_break_is_an_error_unless_followed_and_a_follower_repeats_no_byte() {
    let world = || World {
        results: CHUNKS.into(),
        break_stream_after: Some(1),
        // A finished job: the follower may end.
        status: canned::healthy_status(),
        ..World::default()
    };
    let ended = ask(&Fake::start(world()), &["results", "j6"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (2, CHUNKS[0]));

    let ended = ask(&Fake::start(world()), &["results", "j6", "-f"]);
    assert_eq!((ended.code, ended.stdout), (0, CHUNKS.concat()));
    assert_eq!(ended.stderr, "The controller went away; waiting for it to come back.\n");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let line: &'static str = Box::leak(format!("{}\n", "x".repeat(1 << 20)).into_boxed_str());
    let fake = Fake::start(World { results: vec![line; 8], ..World::healthy() });
    let mut child = command(["results", "j7", "--controller", &fake.address.to_string()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}
