//! The services' own files.

use std::path::{Path, PathBuf};

use super::layout::{Layout, Manager, Part};

/// The file for a service, filled in.
pub(crate) fn unit(layout: &Layout, part: Part) -> String {
    let template = match (layout.manager, part) {
        (Manager::Launchd, Part::Agent) => include_str!("../../../launchd/io.nightshift.agent.plist"),
        (Manager::Launchd, Part::Controller) => {
            include_str!("../../../launchd/io.nightshift.controller.plist")
        }
        (Manager::Systemd, Part::Agent) => include_str!("../../../launchd/nightshift-agent.service"),
        (Manager::Systemd, Part::Controller) => {
            include_str!("../../../launchd/nightshift-controller.service")
        }
    };
    let escape = match layout.manager {
        Manager::Launchd => in_xml,
        Manager::Systemd => in_quotes,
    };
    let program = layout.program(part.program());
    let config = layout.config(part);
    let (logs, stderr) = (layout.logs(), layout.stderr(part));
    let values = [
        ("{{program}}", Some(&program)),
        ("{{config}}", Some(&config)),
        ("{{logs}}", logs.as_ref()),
        ("{{stderr}}", stderr.as_ref()),
    ];
    let mut text = template.to_owned();
    for (name, value) in values {
        if let Some(value) = value {
            text = text.replace(name, &escape(value));
        }
    }
    text
}

fn in_xml(path: &Path) -> String {
    path.to_string_lossy().replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Within double quotes of a line of systemd's, where `%` and `$` mean something, too.
fn in_quotes(path: &Path) -> String {
    let mut text = String::new();
    for character in path.to_string_lossy().chars() {
        match character {
            '%' | '$' => text.extend([character, character]),
            '"' | '\\' => text.extend(['\\', character]),
            _ => text.push(character),
        }
    }
    text
}

/// What the service of this file runs.
pub(crate) fn program(manager: Manager, text: &str) -> Option<PathBuf> {
    match manager {
        Manager::Launchd => {
            let after = text.split_once("<key>ProgramArguments</key>")?.1;
            let written = after.split_once("<string>")?.1.split_once("</string>")?.0;
            Some(written.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&").into())
        }
        Manager::Systemd => {
            let after = text.split_once("\nExecStart=\"")?.1;
            let (mut program, mut characters) = (String::new(), after.chars());
            loop {
                match characters.next()? {
                    '"' => return Some(program.into()),
                    // Each of these stands for the one after it.
                    '\\' | '%' | '$' => program.push(characters.next()?),
                    character => program.push(character),
                }
            }
        }
    }
}

/// A new configuration of the controller.
pub(crate) fn controller_config() -> String {
    "# Configuration of Nightshift's controller. `clusterd --print-config` shows every key with its default; most take effect as soon\n\
     # as this file is saved.\n"
        .to_owned()
}

/// A new configuration of the agent, with what was asked for.
pub(crate) fn agent_config(worker_user: &str, node_id: Option<&str>, controller: Option<&str>) -> String {
    let line = |key: &str, value: Option<&str>, otherwise: &str| match value {
        Some(value) => format!("{key} = {}\n", toml::Value::String(value.to_owned())),
        None => format!("# {key} = {}\n", toml::Value::String(otherwise.to_owned())),
    };
    let mut text = String::from(
        "# Configuration of Nightshift's agent. It takes effect when the agent is started again.\n\n\
         # Workers run as this user, who must be able to read the models.\n",
    );
    text.push_str(&line("worker_user", Some(worker_user), ""));
    text.push_str("\n# The name of this machine in the cluster; without it, its host name.\n");
    text.push_str(&line("node_id", node_id, "studio"));
    text.push_str(
        "\n# Of Thunderbolt ports that lead to other nodes: say what they lack (suggest), do it (apply), or neither (observe).\n",
    );
    text.push_str(&line("link_policy", None, "suggest"));
    text.push_str("\n# Where the controller is, or a tunnel to it ends.\n");
    text.push_str(&line("controller", controller, "127.0.0.1:7400"));
    text.push_str(
        "\n# Whether, and how often, the controller may have this machine restarted when nothing else helps.\n\
         # [reboot]\n# allow = false\n# min_hours_between = 12\n",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(manager: Manager, prefix: &str) -> Layout {
        Layout { manager, prefix: prefix.into() }
    }

    /// launchd.plist(5), in the words of which these keys are documented.
    const DOCUMENTED: &[&str] = &[
        "EnvironmentVariables",
        "ExitTimeOut",
        "HardResourceLimits",
        "KeepAlive",
        "Label",
        "ProcessType",
        "ProgramArguments",
        "RunAtLoad",
        "SoftResourceLimits",
        "StandardErrorPath",
        "StandardOutPath",
        "ThrottleInterval",
        "Umask",
        "WorkingDirectory",
    ];

    fn parsed(text: &str) -> plist::Dictionary {
        plist::Value::from_reader_xml(text.as_bytes()).unwrap().into_dictionary().unwrap()
    }

    #[test]
    fn the_plists_are_ones_and_say_what_launchd_understands() {
        for part in Part::ALL {
            // A prefix with everything in it that XML would read otherwise.
            let layout = layout(Manager::Launchd, "/opt/a <b> & c");
            let text = unit(&layout, part);
            assert!(!text.contains("{{"), "{text}");
            assert_eq!(program(Manager::Launchd, &text), Some(layout.program(part.program())));
            let found = parsed(&text);
            for key in found.keys() {
                assert!(DOCUMENTED.contains(&key.as_str()), "{key}");
            }
            let text_of = |key: &str| found[key].as_string().unwrap().to_owned();
            assert_eq!(text_of("Label"), layout.label(part));
            assert_eq!(text_of("ProcessType"), "Interactive");
            let arguments: Vec<&str> = found["ProgramArguments"]
                .as_array()
                .unwrap()
                .iter()
                .map(|word| word.as_string().unwrap())
                .collect();
            let own = match part {
                Part::Agent => vec!["/opt/a <b> & c/bin/cluster-agent", "run"],
                Part::Controller => vec!["/opt/a <b> & c/bin/clusterd"],
            };
            let config = format!("/Library/Application Support/Nightshift/{}.toml", part.name());
            let rest = ["--config", &config, "--log-dir", "/Library/Logs/Nightshift"];
            assert_eq!(arguments, own.into_iter().chain(rest).collect::<Vec<_>>());
            // FIELD-NOTES 6: restarted when it fails, not when it was asked to end.
            let keep_alive = found["KeepAlive"].as_dictionary().unwrap();
            assert_eq!(keep_alive["SuccessfulExit"].as_boolean(), Some(false));
            assert_eq!(found["RunAtLoad"].as_boolean(), Some(true));
            for limits in ["SoftResourceLimits", "HardResourceLimits"] {
                let limits = found[limits].as_dictionary().unwrap();
                assert!(limits["NumberOfFiles"].as_unsigned_integer().is_some());
                assert_eq!(limits.len(), 1);
            }
        }
        let agent = parsed(&unit(&layout(Manager::Launchd, "/usr/local"), Part::Agent));
        // Twice the grace of workers and more.
        assert!(agent["ExitTimeOut"].as_unsigned_integer().unwrap() >= 60);
    }

    #[test]
    fn the_units_quote_what_systemd_would_read_otherwise() {
        let layout = layout(Manager::Systemd, "/opt/50% \"x\" $y");
        for part in Part::ALL {
            let text = unit(&layout, part);
            assert!(!text.contains("{{"), "{text}");
            let own = layout.program(part.program());
            assert_eq!(program(Manager::Systemd, &text), Some(own));
            let start = text.lines().find(|line| line.starts_with("ExecStart=")).unwrap();
            assert!(start.starts_with(r#"ExecStart="/opt/50%% \"x\" $$y/bin/cluster"#), "{start}");
        }
    }

    #[test]
    fn what_was_asked_for_is_in_the_configuration_and_the_rest_is_shown() {
        let text = agent_config("_nightshift", Some("studio \"2\""), None);
        let parsed: toml::Table = text.parse().unwrap();
        assert_eq!(parsed["worker_user"].as_str(), Some("_nightshift"));
        assert_eq!(parsed["node_id"].as_str(), Some("studio \"2\""));
        assert_eq!(parsed.len(), 2);
        assert!(text.contains("# controller = \"127.0.0.1:7400\"\n"));
        assert_eq!(controller_config().parse::<toml::Table>().unwrap().len(), 0);
    }
}
