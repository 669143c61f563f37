//! A trouble in words.

use jiff::{Timestamp, tz::TimeZone};

use super::{Concerned, Trouble};

/// When it was, on this machine's clock.
#[must_use]
pub fn time(trouble: &Trouble, zone: &TimeZone) -> String {
    let at = i64::try_from(trouble.unix_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    at.map_or_else(
        || "at a time unknown".to_owned(),
        |at| at.to_zoned(zone.clone()).strftime("on %Y-%m-%d at %H:%M:%S").to_string(),
    )
}

/// "python3.13 (worker j7/e2/r0) and Safari"; `None` where nobody is named.
#[must_use]
pub fn concerned(trouble: &Trouble) -> Option<String> {
    let names: Vec<String> = trouble.concerned.iter().map(name).collect();
    let (last, others) = names.split_last()?;
    Some(if others.is_empty() { last.clone() } else { format!("{} and {last}", others.join(", ")) })
}

fn name(of: &Concerned) -> String {
    match (of.worker, of.pid) {
        (Some(worker), _) => format!("{} (worker {worker})", of.process),
        (None, Some(pid)) => format!("{} (pid {pid})", of.process),
        (None, None) => of.process.clone(),
    }
}

/// " (firmware-detected lockup)", or nothing.
#[must_use]
pub fn reason(trouble: &Trouble) -> String {
    trouble.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default()
}
