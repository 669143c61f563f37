//! How many JACCL starts this boot has left.
//!
//! A start that fails can leak a protection domain until the next boot, there are 11, and looping on them can wedge a port
//! (FIELD-NOTES 2). So every start counts, before it is made, whether it will succeed or not, and five of a boot are spent
//! at most: enough remain for the start that works, after a person has looked.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::durable;

/// Of 11 protection domains of a device (FIELD-NOTES 1 and 2: one operator's rule, not checked by us).
pub const MAX_STARTS_PER_BOOT: u32 = 5;

/// The count of one boot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartBudget {
    /// Which boot; `None` where the machine does not say, and then all boots are taken for one.
    pub boot_id: Option<String>,
    /// Starts so far.
    pub used: u32,
}

impl StartBudget {
    /// What counts in this boot: the count so far, or none where it is another boot's.
    #[must_use]
    pub fn in_boot(self, boot_id: Option<&str>) -> Self {
        if self.boot_id.as_deref() == boot_id {
            self
        } else {
            Self { boot_id: boot_id.map(str::to_owned), used: 0 }
        }
    }

    /// Whether one more may be made.
    ///
    /// # Errors
    /// One sentence.
    pub fn check(&self) -> Result<(), String> {
        if self.used < MAX_STARTS_PER_BOOT {
            return Ok(());
        }
        Err(format!(
            "all {MAX_STARTS_PER_BOOT} RDMA (jaccl) starts of this boot are used up, and each can cost resources that only \
             a restart of the machine brings back: use ring until then"
        ))
    }

    /// With one more.
    #[must_use]
    pub fn spent(self) -> Self {
        Self { used: self.used.saturating_add(1), ..self }
    }
}

/// The count and its file.
#[derive(Debug, Clone)]
pub struct Starts {
    path: PathBuf,
    budget: StartBudget,
}

impl Starts {
    /// Reads the file, if there is one. One that makes no sense is taken for a boot without starts left: what it counted
    /// protects the machine.
    #[must_use]
    pub fn open(path: &Path, boot_id: Option<&str>) -> Self {
        let spent = || StartBudget { boot_id: boot_id.map(str::to_owned), used: MAX_STARTS_PER_BOOT };
        let found = match fs::read(path) {
            Ok(text) => serde_json::from_slice(&text).map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(StartBudget::default()),
            Err(error) => Err(error),
        };
        let budget = found.unwrap_or_else(|error| {
            tracing::warn!(path = %path.display(), %error, "the count of RDMA starts cannot be read; none is allowed in this boot");
            spent()
        });
        Self { path: path.to_owned(), budget: budget.in_boot(boot_id) }
    }

    /// How things stand.
    #[must_use]
    pub fn budget(&self) -> &StartBudget {
        &self.budget
    }

    /// Counts one, durably.
    ///
    /// # Errors
    /// When it cannot be written: nothing may be started then.
    pub fn spend(&mut self) -> io::Result<()> {
        let budget = self.budget.clone().spent();
        let text = serde_json::to_vec(&budget).map_err(io::Error::other)?;
        durable::replace_file(&self.path, &text)?;
        self.budget = budget;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_of_a_boot_and_the_sixth_is_refused_in_words() {
        let mut budget = StartBudget::default().in_boot(Some("b1"));
        for used in 0..5 {
            assert_eq!((budget.used, budget.check()), (used, Ok(())));
            budget = budget.spent();
        }
        assert_eq!(
            budget.check().unwrap_err(),
            "all 5 RDMA (jaccl) starts of this boot are used up, and each can cost resources that only a restart of the machine brings back: use ring until then"
        );
        assert!(budget.clone().in_boot(Some("b1")).check().is_err());
        assert!(budget.clone().in_boot(Some("b2")).check().is_ok());
        assert!(StartBudget { boot_id: None, ..budget }.in_boot(None).check().is_err());
    }

    #[test]
    fn the_count_outlives_the_agent_and_not_the_boot() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("jaccl-starts.json");
        let mut starts = Starts::open(&path, Some("b1"));
        starts.spend().unwrap();
        starts.spend().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), r#"{"boot_id":"b1","used":2}"#);
        assert_eq!(Starts::open(&path, Some("b1")).budget().used, 2);
        assert_eq!(Starts::open(&path, Some("b2")).budget().used, 0);
        fs::write(&path, "{").unwrap();
        assert!(Starts::open(&path, Some("b1")).budget().check().is_err());
    }

    #[test]
    fn what_cannot_be_written_has_not_been_counted() {
        let dir = tempfile::tempdir().unwrap();
        let mut starts = Starts::open(&dir.path().join("absent/starts.json"), None);
        assert!(starts.spend().is_err());
        assert_eq!(starts.budget().used, 0);
    }
}
