//! `clusterctl events`: what it prints.

use nightshift_ctl::output::{Screen, human, text::width, views::EventView};

use super::{
    canned,
    fake::{Fake, World},
    program::ask,
};

fn human(columns: Option<usize>) -> String {
    let screen = Screen::plain(columns);
    let lines: Vec<String> = canned::events()
        .into_iter()
        .flat_map(|event| human::events::event(&EventView::from(event), &screen))
        .collect();
    for line in &lines {
        assert!(columns.is_none_or(|columns| width(line) <= columns), "{line:?}");
    }
    lines.join("\n")
}

#[test]
fn lines() {
    insta::assert_snapshot!("wide", human(Some(100)));
    insta::assert_snapshot!("narrow", human(Some(60)));
    insta::assert_snapshot!("pipe", human(None));
}

#[test]
fn json_lines() {
    let fake = Fake::start(World { events: canned::events(), ..World::healthy() });
    let ended = ask(&fake, &["events", "--node", "mini-2", "--job", "j7", "-n", "5", "--output", "json"]);
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
    insta::assert_json_snapshot!("json", ended.json_lines());
    assert_eq!(fake.world.asked(), ["events tail=5 node=\"mini-2\" job=7"]);
}

#[test]
fn a_stream_that_breaks_is_an_error_unless_followed() {
    let world = World { events: canned::events(), break_stream_after: Some(2), ..World::healthy() };
    let ended = ask(&Fake::start(world), &["events"]);
    assert_eq!(ended.code, 2);
    assert_eq!(ended.stdout.lines().count(), 2);
    assert!(ended.stderr.contains("The connection to the controller"), "{}", ended.stderr);
}

#[test]
fn nothing_has_happened() {
    let ended = ask(&Fake::start(World::healthy()), &["events"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "Nothing has happened yet.\n"));
}

#[test]
fn a_follower_outlives_a_break_and_repeats_nothing() {
    use std::io::{BufRead, BufReader};
    let world = World { events: canned::events(), break_stream_after: Some(2), ..World::healthy() };
    let fake = Fake::start(world);
    let mut command = super::program::command(["events", "-f", "--output", "json", "--controller"]);
    command.arg(fake.address.to_string()).stdout(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    let seqs: Vec<u64> = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .take(4)
        .map(|line| {
            serde_json::from_str::<serde_json::Value>(&line.unwrap()).unwrap()["seq"].as_u64().unwrap()
        })
        .collect();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(seqs, [1, 2, 3, 4]);
}
