//! A job's id as people type it.

use std::{fmt, str::FromStr};

/// "j7" or "7".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobId(pub u64);

impl FromStr for JobId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.strip_prefix(['j', 'J']).unwrap_or(text);
        match digits.parse() {
            // "+7" parses as a number, but is none of ours.
            Ok(id) if id > 0 && digits.starts_with(|c: char| c.is_ascii_digit()) => Ok(JobId(id)),
            _ => Err("a job's id looks like j7; list them with: clusterctl jobs --all".to_owned()),
        }
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "j{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_with_and_without_the_letter() {
        assert_eq!("j7".parse(), Ok(JobId(7)));
        assert_eq!("J7".parse(), Ok(JobId(7)));
        assert_eq!("7".parse(), Ok(JobId(7)));
        for wrong in ["", "j", "j0", "0", "j-1", "+7", "jj7", "7a", "99999999999999999999"] {
            assert!(wrong.parse::<JobId>().is_err(), "{wrong}");
        }
    }
}
