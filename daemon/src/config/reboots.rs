//! Section `[reboots]`: whether machines that need a restart are restarted.

use serde::{Deserialize, Serialize};

use super::Error;
use crate::recovery::Policy;

/// Below it, a machine that is on its way would be taken for one that is lost.
const LEAST_RETURN_MS: u64 = 5 * 60_000;

/// Section `[reboots]`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Reboots {
    /// Whether a machine that needs a restart is restarted, where its agent's configuration allows it, too.
    pub enabled: bool,
    /// How long such a machine must have been idle.
    pub settle_ms: u64,
    /// The most restarts of machines of this cluster within a day.
    pub per_day: u32,
    /// A machine that was told to restart and is not back after this long needs a person.
    pub return_ms: u64,
}

impl Default for Reboots {
    fn default() -> Self {
        let policy = Policy::default();
        Self {
            enabled: policy.reboots,
            settle_ms: policy.reboot_settle_ms,
            per_day: policy.reboots_per_day,
            return_ms: policy.reboot_return_ms,
        }
    }
}

impl Reboots {
    pub(super) fn validate(&self) -> Result<(), Error> {
        let refuse = |key, value: u64, why| Err(Error::Value { key, value: value.to_string(), why });
        if self.per_day == 0 {
            return refuse("reboots.per_day", 0, "it must be at least 1; enabled = false restarts none");
        }
        if self.return_ms < LEAST_RETURN_MS {
            let why = "it must be at least 300000: a machine takes minutes to go down and to come back";
            return refuse("reboots.return_ms", self.return_ms, why);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn parse(text: &str) -> Config {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn restarts_of_machines_are_off_until_somebody_turns_them_on() {
        assert!(!parse("").policy().reboots);
        let on = parse("[reboots]\nenabled = true\nsettle_ms = 1\nper_day = 3\nreturn_ms = 400000\n");
        assert_eq!(on.needs_restart(&Config::default()), [""; 0], "it takes effect at once");
        let Policy { reboots, reboot_settle_ms, reboots_per_day, reboot_return_ms, .. } = on.policy();
        assert_eq!((reboots, reboot_settle_ms, reboots_per_day, reboot_return_ms), (true, 1, 3, 400_000));
    }

    #[test]
    fn bounds_that_make_no_sense_are_refused() {
        let refusal = |text: &str| parse(text).validate().unwrap_err().to_string();
        let back = refusal("[reboots]\nreturn_ms = 299999\n");
        assert!(
            back.starts_with("reboots.return_ms = 299999 is refused: it must be at least 300000"),
            "{back}"
        );
        let none = refusal("[reboots]\nper_day = 0\n");
        assert!(none.starts_with("reboots.per_day = 0 is refused: it must be at least 1"), "{none}");
    }
}
