//! `pmset -g` and `pmset -g sched` (FIELD-NOTES 6): what may end the night by itself.

/// Events taken from one answer.
const MOST_EVENTS: usize = 32;

/// Power settings in use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// Minutes without use until the machine sleeps; 0: never.
    pub sleep_min: Option<u32>,
    /// Sleep is disabled altogether; stands there only once somebody has set it.
    pub sleep_disabled: Option<bool>,
    /// The machine starts by itself when power returns. Laptops do not have it.
    pub auto_restart: Option<bool>,
    /// Low power mode, which halves the speed.
    pub low_power_mode: Option<bool>,
    /// What keeps it awake now, by name.
    pub sleep_prevented_by: Vec<String>,
}

/// The settings that `pmset -g` prints.
#[must_use]
pub fn settings(text: &str) -> Settings {
    let mut settings = Settings::default();
    for line in text.lines() {
        // Keys may hold spaces themselves; those that matter here hold none.
        let mut words = line.split_ascii_whitespace();
        let (Some(key), Some(value)) = (words.next(), words.next()) else { continue };
        match key {
            "sleep" => {
                settings.sleep_min = value.parse().ok();
                settings.sleep_prevented_by = prevented_by(line);
            }
            "SleepDisabled" => settings.sleep_disabled = switch(value),
            "autorestart" => settings.auto_restart = switch(value),
            "lowpowermode" => settings.low_power_mode = switch(value),
            _ => {}
        }
    }
    settings
}

fn switch(value: &str) -> Option<bool> {
    match value {
        "0" => Some(false),
        "1" => Some(true),
        _ => None,
    }
}

/// ` sleep 1 (sleep prevented by powerd, sharingd)`
fn prevented_by(line: &str) -> Vec<String> {
    let names = line.split_once("(sleep prevented by ").and_then(|(_, rest)| rest.split_once(')'));
    let names = names.map(|(names, _)| names).unwrap_or_default();
    names
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .map(ToOwned::to_owned)
        .take(MOST_EVENTS)
        .collect()
}

/// Of the events that `pmset -g sched` prints, those that stop the machine, as they stand there.
#[must_use]
pub fn stops(text: &str) -> Vec<String> {
    let events = text.lines().map(str::trim).filter_map(|line| {
        let event = match line.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((_, event)) => event.trim(),
            None => line,
        };
        let mut words = event.split_ascii_whitespace();
        let (what, at) = (words.next()?, words.next()?);
        (matches!(what, "sleep" | "shutdown" | "restart") && at == "at").then(|| event.to_owned())
    });
    events.take(MOST_EVENTS).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::probe::parse::mutated::mutated;

    const DESKTOP: &str = "System-wide power settings:\n SleepDisabled\t\t1\nCurrently in use:\n standby              0\n\
        \u{20}Sleep On Power Button 1\n womp                 1\n autorestart          1\n hibernatefile        /var/vm/sleepimage\n\
        \u{20}sleep                0 (sleep prevented by powerd, caffeinate)\n displaysleep         10\n lowpowermode         0\n";

    const SCHEDULED: &str = "Repeating power events:\n  wakepoweron at 2:55AM every day\n  restart at 3:00AM every day\n\
        Scheduled power events:\n [0]  wake at 11/27/26 02:30:00 by 'com.apple.alarm.user-visible'\n\
        \u{20}[1]  shutdown at 11/27/26 04:00:00 by 'pmset'\n";

    #[test]
    fn a_machine_set_up_for_the_night() {
        let expected = Settings {
            sleep_min: Some(0),
            sleep_disabled: Some(true),
            auto_restart: Some(true),
            low_power_mode: Some(false),
            sleep_prevented_by: vec!["powerd".to_owned(), "caffeinate".to_owned()],
        };
        assert_eq!(settings(DESKTOP), expected);
    }

    #[test]
    fn a_laptop_as_it_comes() {
        let laptop = settings(
            "Currently in use:\n Sleep On Power Button 1\n sleep                1\n lowpowermode         1\n",
        );
        let expected = Settings { sleep_min: Some(1), low_power_mode: Some(true), ..Settings::default() };
        assert_eq!(laptop, expected, "what is not printed is not known");
    }

    #[test]
    fn what_cannot_be_read_is_not_known() {
        for text in ["", "pmset: error\n", " sleep\n autorestart 2\n", " sleep -1\n SleepDisabled yes\n"] {
            assert_eq!(settings(text), Settings::default(), "{text}");
        }
        assert_eq!(settings(" sleep 1 (sleep prevented by powerd").sleep_prevented_by, [""; 0]);
    }

    #[test]
    fn of_what_is_scheduled_only_stops_end_the_night() {
        let expected = ["restart at 3:00AM every day", "shutdown at 11/27/26 04:00:00 by 'pmset'"];
        assert_eq!(stops(SCHEDULED), expected);
        assert_eq!(stops("No scheduled events\n"), [""; 0]);
        assert_eq!(stops(DESKTOP), [""; 0], "a setting of that name is no event");
        assert_eq!(stops(""), [""; 0]);
    }

    proptest! {
        #[test]
        fn no_answer_panics(text in prop_oneof![any::<String>(), mutated(DESKTOP), mutated(SCHEDULED)]) {
            let _ = (settings(&text), stops(&text));
        }
    }
}
