//! What refuses a restart, each by itself, and that none is made twice.

use std::{fs, thread, time::Instant};

use tempfile::TempDir;

use super::*;
use crate::probe::observation::Preflight;

/// A Monday evening.
const EVENING_MS: u64 = 1_764_018_000_000;

/// A Mac in a directory, that counts how often it is restarted.
struct Mac {
    dir: TempDir,
    rules: Rules,
    boot_id: Option<String>,
    may_run: bool,
}

impl Mac {
    /// Everything agrees to a restart of it.
    fn new() -> Self {
        let mac = Self {
            dir: tempfile::tempdir().unwrap(),
            rules: Rules { allow: true, ..Rules::default() },
            boot_id: Some("b1".to_owned()),
            may_run: true,
        };
        mac.script("fdesetup", "echo asked >> \"${0%/*}/asked\"; echo 'FileVault is Off.'");
        // It keeps what was on disk when it was run.
        mac.script(
            "shutdown",
            "echo \"$@\" >> \"${0%/*}/calls\"; cp \"${0%/*}/restarts.json\" \"${0%/*}/seen\"",
        );
        mac
    }

    fn script(&self, name: &str, text: &str) {
        crate::scripts::write(&self.dir.path().join(name), text);
    }

    /// Its agent, started anew.
    fn agent(&self) -> Restarter {
        Restarter::open(Options {
            rules: self.rules.clone(),
            path: self.dir.path().join(FILE),
            boot_id: self.boot_id.clone(),
            tools: Tools::in_dirs(vec![self.dir.path().to_owned()]),
            is_mac: true,
            may_run: self.may_run,
        })
    }

    fn calls(&self) -> usize {
        fs::read_to_string(self.dir.path().join("calls")).unwrap_or_default().lines().count()
    }

    /// The sentence of a refusal, which runs nothing.
    fn refusal(&self, command: &v1::RestartMachine, workers: usize, now_unix_ms: u64) -> String {
        let calls = self.calls();
        let refusal = self.agent().restart(command, workers, now_unix_ms).unwrap_err();
        assert_eq!(self.calls(), calls, "it was refused: {refusal}");
        refusal
    }
}

fn command(boot_id: &str, cause: v1::RestartCause) -> v1::RestartMachine {
    v1::RestartMachine {
        command_id: 7,
        boot_id: boot_id.to_owned(),
        cause: cause.into(),
        reason: "60.0 GB did not come back".to_owned(),
    }
}

fn stranded(boot_id: &str) -> v1::RestartMachine {
    command(boot_id, v1::RestartCause::StrandedMemory)
}

fn used_up(boot_id: &str) -> v1::RestartMachine {
    command(boot_id, v1::RestartCause::RdmaStartsUsedUp)
}

#[test]
fn it_is_on_disk_before_the_machine_is_restarted() {
    let mac = Mac::new();
    assert_eq!(mac.agent().restart(&stranded("b1"), 0, EVENING_MS), Ok(()));
    assert_eq!(fs::read_to_string(mac.dir.path().join("calls")).unwrap(), "-r now\n");
    assert_eq!(
        fs::read_to_string(mac.dir.path().join("seen")).unwrap(),
        r#"[{"boot_id":"b1","cause":"stranded-memory","at_unix_ms":1764018000000,"failed":null}]"#
    );
}

#[test]
fn by_default_nothing_is_ever_restarted() {
    let mac = Mac { rules: Rules::default(), ..Mac::new() };
    assert_eq!(
        mac.refusal(&stranded("b1"), 0, EVENING_MS),
        "restarts are not allowed on this machine; allow them in its agent's configuration ([reboot] allow = true), or restart \
         it by hand"
    );
}

#[test]
fn a_machine_with_workers_is_not_restarted() {
    let said = Mac::new().refusal(&stranded("b1"), 2, EVENING_MS);
    assert_eq!(said, "2 workers run here; it can be restarted when they have ended");
}

#[test]
fn a_command_of_another_boot_comes_too_late() {
    let said = Mac::new().refusal(&stranded("b0"), 0, EVENING_MS);
    assert_eq!(said, "the restart was asked for in another boot than this one; nothing is to be done");
}

#[test]
fn a_machine_that_does_not_name_its_boot_is_not_restarted() {
    let mac = Mac { boot_id: None, ..Mac::new() };
    let said = mac.refusal(&stranded(""), 0, EVENING_MS);
    assert_eq!(said, "this machine does not say which boot it is in; restart it by hand");
}

#[test]
fn a_cause_of_a_later_version_is_refused() {
    let said = Mac::new().refusal(&command("b1", v1::RestartCause::Unspecified), 0, EVENING_MS);
    assert!(said.starts_with("this agent does not know what the restart is for"), "{said}");
}

#[test]
fn a_disk_that_waits_for_a_person_keeps_the_machine_up() {
    let mac = Mac::new();
    for said in ["FileVault is On.", "FileVault is Off.\nDecryption in progress: Percent completed = 61"] {
        mac.script("fdesetup", &format!("printf '{said}\\n'"));
        let refusal = mac.refusal(&stranded("b1"), 0, EVENING_MS);
        assert!(refusal.starts_with("FileVault is on: after a restart nothing runs here until"), "{refusal}");
    }
}

#[test]
fn a_disk_of_which_nothing_is_known_keeps_it_up_too() {
    let mac = Mac::new();
    for script in ["echo 'FileVault is pending'", "exit 1", "echo 'FileVault is Off.'; exit 1"] {
        mac.script("fdesetup", script);
        let refusal = mac.refusal(&stranded("b1"), 0, EVENING_MS);
        assert!(refusal.starts_with("whether FileVault is on is not known"), "{refusal}");
    }
    fs::remove_file(mac.dir.path().join("fdesetup")).unwrap();
    let refusal = mac.refusal(&stranded("b1"), 0, EVENING_MS);
    assert!(refusal.starts_with("whether FileVault is on is not known"), "{refusal}");
}

#[test]
fn an_agent_that_is_not_root_says_so() {
    let mac = Mac { may_run: false, ..Mac::new() };
    let said = mac.refusal(&stranded("b1"), 0, EVENING_MS);
    assert_eq!(said, "its agent does not run as root and cannot restart the machine; restart it by hand");
}

#[test]
fn it_is_not_restarted_more_often_than_is_allowed() {
    let mut mac = Mac::new();
    mac.agent().restart(&stranded("b1"), 0, EVENING_MS).unwrap();
    mac.boot_id = Some("b2".to_owned());
    let early = EVENING_MS + 12 * HOUR_MS - 1;
    let said = mac.refusal(&used_up("b2"), 0, early);
    assert!(said.starts_with("it was restarted within the last 12 hours, and more often"), "{said}");
    // A clock that was set back makes it no longer ago.
    assert_eq!(mac.refusal(&used_up("b2"), 0, EVENING_MS - HOUR_MS), said);
    assert_eq!(mac.agent().restart(&used_up("b2"), 0, early + 1), Ok(()));
    assert_eq!(mac.calls(), 2);
}

#[test]
fn what_a_restart_did_not_mend_is_for_a_person() {
    let mut mac = Mac::new();
    mac.rules.min_hours_between = 1;
    mac.agent().restart(&stranded("b1"), 0, EVENING_MS).unwrap();
    mac.boot_id = Some("b2".to_owned());
    let next_evening = EVENING_MS + 24 * HOUR_MS;
    assert_eq!(
        mac.refusal(&stranded("b2"), 0, next_evening - 1),
        "it was restarted within the last day for memory that a killed worker left wired, which came back: another restart \
         would not mend that, and somebody has to look"
    );
    assert_eq!(mac.agent().restart(&used_up("b2"), 0, next_evening - 1), Ok(()), "that is another cause");
    mac.boot_id = Some("b3".to_owned());
    assert_eq!(
        mac.agent().restart(&stranded("b3"), 0, next_evening + HOUR_MS),
        Ok(()),
        "and that another day"
    );
    assert_eq!(mac.calls(), 3);
}

/// Killed at any moment behind the record, the agent does not know whether the command was run, so it is not run again.
#[test]
fn an_agent_that_was_killed_between_record_and_command_restarts_nothing_in_that_boot() {
    let mut mac = Mac::new();
    let killed = mac.agent();
    killed.0.note(&mut locked(&killed.0.book), "b1", Cause::StrandedMemory, EVENING_MS).unwrap();
    drop(killed);
    for later in [0, 1, 48, 10_000] {
        for command in [stranded("b1"), used_up("b1")] {
            let said = mac.refusal(&command, 0, EVENING_MS + later * HOUR_MS);
            assert!(said.starts_with("it was told to restart in this boot already"), "{said}");
        }
    }
    assert_eq!(mac.calls(), 0);
    mac.boot_id = Some("b2".to_owned());
    assert_eq!(mac.agent().restart(&stranded("b2"), 0, EVENING_MS + 24 * HOUR_MS), Ok(()));
}

#[test]
fn a_command_that_comes_twice_restarts_once() {
    let mac = Mac::new();
    let agent = mac.agent();
    assert_eq!(agent.restart(&stranded("b1"), 0, EVENING_MS), Ok(()));
    assert!(agent.restart(&stranded("b1"), 0, EVENING_MS + 1).is_err());
    assert!(mac.agent().restart(&stranded("b1"), 0, EVENING_MS + 1).is_err());
    assert_eq!(mac.calls(), 1);
}

#[test]
fn a_restart_that_cannot_be_written_down_is_not_made() {
    let mac = Mac::new();
    let path = mac.dir.path().join("absent").join(FILE);
    let tools = Tools::in_dirs(vec![mac.dir.path().to_owned()]);
    let rules = mac.rules.clone();
    let options = Options { rules, path, boot_id: mac.boot_id.clone(), tools, is_mac: true, may_run: true };
    let agent = Restarter::open(options);
    let said = agent.restart(&stranded("b1"), 0, EVENING_MS).unwrap_err();
    assert!(said.starts_with("the restart cannot be written down in "), "{said}");
    assert!(!agent.is_under_way(EVENING_MS));
    assert_eq!(mac.calls(), 0);
}

#[test]
fn a_record_that_makes_no_sense_may_hold_a_restart_and_allows_none() {
    let mac = Mac::new();
    fs::write(mac.dir.path().join(FILE), "[{").unwrap();
    let said = mac.refusal(&stranded("b1"), 0, EVENING_MS);
    assert!(said.starts_with("the record of its restarts, ") && said.contains("cannot be read"), "{said}");
}

#[test]
fn a_command_that_fails_is_told_and_not_tried_again_in_that_boot() {
    let mac = Mac::new();
    mac.script("shutdown", "echo \"$@\" >> \"${0%/*}/calls\"; exit 1");
    let said = mac.agent().restart(&stranded("b1"), 0, EVENING_MS).unwrap_err();
    assert_eq!(said, "`shutdown -r now` failed: shutdown ended with exit code 1; restart it by hand");
    assert!(!mac.agent().is_under_way(EVENING_MS), "it may take work");
    let again = mac.refusal(&stranded("b1"), 0, EVENING_MS + 1);
    assert!(again.starts_with("it could not be restarted in this boot: shutdown ended with"), "{again}");
}

/// Somebody has restarted it by hand since, which mends nothing less than a restart of ours would have.
#[test]
fn a_command_that_failed_was_no_restart_and_stands_in_the_way_of_none_in_another_boot() {
    let mut mac = Mac::new();
    mac.script("shutdown", "exit 1");
    mac.agent().restart(&stranded("b1"), 0, EVENING_MS).unwrap_err();
    mac.script("shutdown", "echo \"$@\" >> \"${0%/*}/calls\"");
    let again = mac.refusal(&stranded("b1"), 0, EVENING_MS + HOUR_MS);
    assert!(again.starts_with("it could not be restarted in this boot"), "{again}");
    mac.boot_id = Some("b2".to_owned());
    assert_eq!(mac.agent().restart(&stranded("b2"), 0, EVENING_MS + HOUR_MS), Ok(()));
    // The one that was made counts on, behind one that was not.
    mac.boot_id = Some("b3".to_owned());
    mac.rules.min_hours_between = 1;
    mac.script("shutdown", "exit 1");
    mac.agent().restart(&used_up("b3"), 0, EVENING_MS + 3 * HOUR_MS).unwrap_err();
    mac.boot_id = Some("b4".to_owned());
    let refusal = mac.refusal(&stranded("b4"), 0, EVENING_MS + 4 * HOUR_MS);
    assert!(refusal.starts_with("it was restarted within the last day for memory"), "{refusal}");
    mac.rules.min_hours_between = 5;
    let refusal = mac.refusal(&used_up("b4"), 0, EVENING_MS + 4 * HOUR_MS);
    assert!(refusal.starts_with("it was restarted within the last 5 hours"), "{refusal}");
}

/// On macOS the command leaves a process behind that ends everything else first, and says so where the command spoke.
#[test]
fn what_restarts_the_machine_may_outlive_the_command_and_speak() {
    let mac = Mac::new();
    let script = "dir=\"${0%/*}\"; \
        (until [ -e \"$dir/go\" ]; do echo waits; echo waits >&2; sleep 0.02; done; echo down > \"$dir/down\") &";
    mac.script("shutdown", script);
    assert_eq!(mac.agent().restart(&stranded("b1"), 0, EVENING_MS), Ok(()));
    assert!(!mac.dir.path().join("down").exists());
    fs::write(mac.dir.path().join("go"), "").unwrap();
    let down_by = Instant::now() + Duration::from_secs(60);
    while !mac.dir.path().join("down").exists() {
        assert!(Instant::now() < down_by, "it was ended with the command");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_disk_is_asked_for_only_where_all_else_agrees() {
    let mac = Mac::new();
    let asked = mac.dir.path().join("asked");
    mac.refusal(&stranded("b1"), 1, EVENING_MS);
    mac.refusal(&stranded("b0"), 0, EVENING_MS);
    assert!(!asked.exists());
    mac.agent().restart(&stranded("b1"), 0, EVENING_MS).unwrap();
    mac.refusal(&stranded("b1"), 0, EVENING_MS);
    assert_eq!(fs::read_to_string(asked).unwrap(), "asked\n", "for the one that was made");
}

#[test]
fn nothing_is_started_while_a_restart_is_under_way() {
    let mac = Mac::new();
    assert!(!mac.agent().is_under_way(EVENING_MS));
    mac.agent().restart(&stranded("b1"), 0, EVENING_MS).unwrap();
    assert!(mac.agent().is_under_way(EVENING_MS + UNDER_WAY_MS - 1));
    assert!(!mac.agent().is_under_way(EVENING_MS + UNDER_WAY_MS), "it is still there, and may take work");
    let next = Mac { boot_id: Some("b2".to_owned()), ..mac };
    assert!(!next.agent().is_under_way(EVENING_MS + 1), "that is over");
}

#[test]
fn the_controller_knows_before_it_asks() {
    let mut mac = Mac::new();
    let seen = |file_vault| Observation {
        os_name: "macos".to_owned(),
        preflight: Some(Preflight { file_vault, ..Preflight::default() }),
        ..Observation::default()
    };
    let problem = |mac: &Mac, seen: &Observation| {
        let standing = mac.agent().standing(seen, EVENING_MS);
        assert_eq!(standing.allowed, mac.rules.allow);
        standing.problem.chars().take(20).collect::<String>()
    };
    let off = seen(Some(observation::FileVault::Off));
    assert_eq!(problem(&mac, &off), "");
    assert_eq!(problem(&mac, &seen(Some(observation::FileVault::On))), "FileVault is on: aft");
    assert_eq!(problem(&mac, &seen(Some(observation::FileVault::Changing))), "FileVault is on: aft");
    assert_eq!(problem(&mac, &seen(None)), "whether FileVault is");
    let linux = Observation { os_name: "linux".to_owned(), ..Observation::default() };
    assert_eq!(problem(&mac, &linux), "");
    mac.agent().restart(&stranded("b1"), 0, EVENING_MS).unwrap();
    assert_eq!(problem(&mac, &off), "it was told to resta");
    mac.boot_id = Some("b2".to_owned());
    assert_eq!(problem(&mac, &off), "it was restarted wit");
    mac.rules.allow = false;
    assert_eq!(problem(&mac, &off), "", "there is nothing to know where it is not allowed");
}

#[test]
fn the_record_is_bounded_and_keeps_the_newest() {
    let mut mac = Mac::new();
    for restart in 0..40_u64 {
        mac.boot_id = Some(format!("b{restart}"));
        let at = EVENING_MS + restart * 24 * HOUR_MS;
        mac.agent().restart(&stranded(&format!("b{restart}")), 0, at).unwrap();
    }
    let kept: Vec<Entry> = serde_json::from_slice(&fs::read(mac.dir.path().join(FILE)).unwrap()).unwrap();
    assert_eq!((kept.len(), kept[0].boot_id.as_str(), kept[15].boot_id.as_str()), (MOST_KEPT, "b24", "b39"));
}

/// No agent that is made to believe something of its machine has tools that could restart it.
#[test]
fn an_agent_that_pretends_cannot_restart_the_machine_it_runs_on() {
    let asked = tools(None, true).ask("shutdown", &["--help"], SHUTDOWN_LIMIT);
    assert!(asked.unwrap_err().to_string().contains("this system has no shutdown"));
}
