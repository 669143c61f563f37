//! `launchctl print system/LABEL` (FIELD-NOTES 6).
//!
//! Apple calls this text no interface. So only what stands directly in the service's own braces is read, and whatever is
//! missing is not known.

/// A service as launchd knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Service {
    /// For example `running`, `not running`, `spawn scheduled`.
    pub state: Option<String>,
    /// Of the process that runs.
    pub pid: Option<u32>,
    /// The plist.
    pub path: Option<String>,
    /// What it runs.
    pub program: Option<String>,
    /// How often it was started.
    pub runs: Option<u64>,
    /// How the process before ended; `None` as well where none has.
    pub last_exit_code: Option<i32>,
    /// Seconds from SIGTERM to SIGKILL.
    pub exit_timeout_s: Option<u64>,
}

impl Service {
    /// Whether its process runs.
    #[must_use]
    pub fn is_running(&self) -> Option<bool> {
        self.state.as_ref().map(|state| state == "running")
    }
}

/// The service; `None` when the text is not one, as when launchd does not know it.
#[must_use]
pub fn service(text: &str) -> Option<Service> {
    let mut lines = text.lines();
    lines.find(|line| !line.starts_with('\t') && line.ends_with(" = {"))?;
    let mut service = Service::default();
    for line in lines.take_while(|line| *line != "}") {
        let Some(own) = line.strip_prefix('\t').filter(|rest| !rest.starts_with('\t')) else { continue };
        let Some((key, value)) = own.split_once(" = ") else { continue };
        let text = || Some(value.to_owned());
        match key {
            "state" if service.state.is_none() => service.state = text(),
            "pid" => service.pid = value.parse().ok(),
            "path" => service.path = text(),
            "program" => service.program = text(),
            "runs" => service.runs = value.parse().ok(),
            // `78: EX_CONFIG` in some releases.
            "last exit code" => {
                service.last_exit_code = value.split(':').next().and_then(|code| code.trim().parse().ok());
            }
            "exit timeout" => service.exit_timeout_s = value.parse().ok(),
            _ => {}
        }
    }
    Some(service)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::probe::parse::mutated::mutated;

    const RUNNING: &str = "system/com.example.agent = {\n\tactive count = 1\n\tpath = /Library/LaunchDaemons/com.example.agent.plist\n\
        \ttype = LaunchDaemon\n\tstate = running\n\n\tprogram = /usr/local/bin/agent\n\targuments = {\n\t\t/usr/local/bin/agent\n\t}\n\n\
        \tdomain = system\n\tminimum runtime = 10\n\texit timeout = 130\n\truns = 3\n\tpid = 10526\n\
        \tlast exit code = (never exited)\n\n\tresource coalition = {\n\t\tstate = active\n\t\tpid = 7\n\t}\n}\n";

    const CRASHING: &str = "system/com.example.agent = {\n\tstate = spawn scheduled\n\texit timeout = 5\n\truns = 199773\n\
        \tlast exit code = 78: EX_CONFIG\n\n\tevent triggers = {\n\t\tcom.example.agent => {\n\t\t\tstate = active\n\t\t}\n\t}\n}\n";

    #[test]
    fn a_service_that_runs() {
        let service = service(RUNNING).unwrap();
        assert_eq!((service.is_running(), service.pid, service.runs), (Some(true), Some(10_526), Some(3)));
        assert_eq!(service.last_exit_code, None, "it has never ended");
        assert_eq!(service.exit_timeout_s, Some(130));
        assert_eq!(service.path.as_deref(), Some("/Library/LaunchDaemons/com.example.agent.plist"));
        assert_eq!(service.program.as_deref(), Some("/usr/local/bin/agent"));
    }

    #[test]
    fn a_service_that_ends_again_and_again() {
        let service = service(CRASHING).unwrap();
        assert_eq!(service.state.as_deref(), Some("spawn scheduled"), "not that of its triggers");
        assert_eq!((service.is_running(), service.last_exit_code), (Some(false), Some(78)));
    }

    #[test]
    fn a_service_launchd_does_not_know() {
        for text in ["", "Bad request.\nCould not find service \"com.example.agent\" in domain for system\n"]
        {
            assert_eq!(service(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_missing_is_not_known() {
        assert_eq!(service("system/x = {\n}\n"), Some(Service::default()));
        assert_eq!(service("system/x = {\n}\n\tstate = running\n"), Some(Service::default()));
        assert_eq!(service("system/x = {\n\t\tstate = running\n").unwrap().is_running(), None);
    }

    proptest! {
        #[test]
        fn no_answer_panics(text in prop_oneof![any::<String>(), mutated(RUNNING), mutated(CRASHING)]) {
            let _ = service(&text).map(|service| service.is_running());
        }
    }
}
