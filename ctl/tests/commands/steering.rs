//! cancel, pause, resume, drain, undrain.

use super::{
    canned,
    fake::{Fake, World},
    program::ask,
};

#[test]
fn each_answers_with_how_things_are_now() {
    let fake = Fake::start(World::healthy());
    let mut said = String::new();
    for args in [
        &["pause", "j7"][..],
        &["resume", "j7"],
        &["cancel", "j7"],
        &["cancel", "j7", "--now", "--yes"],
        &["drain", "mini-1"],
        &["undrain", "mini-1"],
    ] {
        let ended = ask(&fake, args);
        assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{args:?}");
        said.push_str(&format!("$ clusterctl {}\n{}", args.join(" "), ended.stdout));
    }
    insta::assert_snapshot!("said", said);
    assert_eq!(fake.world.asked(), ["cancel now=false", "cancel now=true"]);
}

#[test]
fn json_is_the_job_or_the_node() {
    let fake = Fake::start(World { status: canned::healthy_status(), ..World::default() });
    for args in [["pause", "j7"], ["resume", "j7"], ["cancel", "j7"]] {
        assert_eq!(ask(&fake, &[&args[..], &["--output", "json"]].concat()).json()["id"], "j7");
    }
    let drained = ask(&fake, &["drain", "mini-1", "--output", "json"]).json();
    assert_eq!((drained["id"].as_str(), drained["state"].as_str()), (Some("mini-1"), Some("draining")));
}

#[test]
fn what_makes_no_sense_is_refused_in_the_controllers_words() {
    let ended = ask(&Fake::start(World::healthy()), &["pause", "j6"]);
    assert_eq!(ended.code, 1);
    assert_eq!(
        ended.stderr,
        "error: Job j6 has ended; there is nothing to pause.
"
    );
}
