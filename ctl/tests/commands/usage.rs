//! The command line itself.

use super::program::{command, ended, run};

#[test]
fn wrong_usage_ends_with_64() {
    for wrong in [
        &["no-such-command"][..],
        &[],
        &["job"],
        &["job", "seven"],
        &["submit", "rows.jsonl"],
        &["submit", "--model", "m"],
        &["submit", "rows.jsonl", "--prompts", "p.txt", "--model", "m"],
        &["submit", "rows.jsonl", "--model", "m", "--temperature", "0.5"],
        &["submit", "--prompts", "p.txt", "--model", "m", "--top-p", "NaN"],
        &["logs"],
        &["logs", "mini-1", "--job", "7"],
        &["status", "--controller", "https://x"],
    ] {
        let ended = run(wrong);
        assert_eq!((ended.code, ended.stdout.as_str()), (64, ""), "{wrong:?}");
        assert_ne!(ended.stderr, "", "{wrong:?}");
    }
}

#[test]
fn wrong_usage_is_json_when_json_was_asked_for() {
    let ended = run(&["job", "seven", "--output", "json"]);
    assert_eq!(ended.code, 64);
    let error: serde_json::Value = serde_json::from_str(&ended.stderr).unwrap();
    insta::assert_json_snapshot!(error, @r#"
    {
      "error": {
        "hint": "For more information, try --help.",
        "kind": "usage",
        "message": "invalid value 'seven' for '<ID>': a job's id looks like j7; list them with: clusterctl jobs --all",
        "tried": null
      }
    }
    "#);
}

#[test]
fn help_names_the_commands_and_the_exit_codes() {
    let ended = run(&["--help"]);
    assert_eq!(ended.code, 0);
    insta::assert_snapshot!("help", ended.stdout);
}

#[test]
fn completions_need_no_controller() {
    for shell in ["bash", "zsh", "fish"] {
        let ended = run(&["completions", shell]);
        assert_eq!(ended.code, 0);
        assert!(ended.stdout.contains("clusterctl"), "{shell}");
    }
}

#[test]
fn colour_is_for_terminals_unless_asked_for() {
    let jobs = |args: &[&str], env: &[(&str, &str)]| {
        let fake = super::fake::Fake::start(super::fake::World::healthy());
        let address = fake.address.to_string();
        let mut command = command(args.iter().chain(&["jobs", "--controller", &address]));
        command.envs(env.iter().copied());
        ended(command).stdout.contains('\x1b')
    };
    assert!(!jobs(&[], &[]));
    assert!(jobs(&["--color", "always"], &[("NO_COLOR", "1")]));
    assert!(jobs(&[], &[("CLICOLOR_FORCE", "1")]));
    assert!(!jobs(&[], &[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]));
}
