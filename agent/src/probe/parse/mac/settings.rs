//! `fdesetup status` and `defaults read` (FIELD-NOTES 6): FileVault, and what updates do by themselves.

/// State of FileVault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileVault {
    /// Nothing runs after a reboot until somebody unlocks the disk.
    On,
    /// The machine starts by itself.
    Off,
    /// It is on its way on or off; until it has got there, as [`FileVault::On`].
    Changing,
}

/// The state that `fdesetup status` prints.
#[must_use]
pub fn file_vault(text: &str) -> Option<FileVault> {
    let says = |words: &str| text.contains(words);
    if says("in progress") || says("Percent completed") {
        Some(FileVault::Changing)
    } else if says("FileVault is On") {
        Some(FileVault::On)
    } else if says("FileVault is Off") {
        Some(FileVault::Off)
    } else {
        None
    }
}

/// What updates do by themselves, by `defaults read /Library/Preferences/com.apple.SoftwareUpdate`. A key that is not there has the
/// default of its release, which is not known here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Updates {
    /// macOS updates are installed at night, with a reboot.
    pub install_macos: Option<bool>,
    /// Security responses are installed at night, some with a reboot.
    pub install_critical: Option<bool>,
    /// Updates are downloaded.
    pub download: Option<bool>,
}

/// Parses what `defaults read` prints of that domain.
#[must_use]
pub fn updates(text: &str) -> Updates {
    Updates {
        install_macos: switch(text, "AutomaticallyInstallMacOSUpdates"),
        install_critical: switch(text, "CriticalUpdateInstall"),
        download: switch(text, "AutomaticDownload"),
    }
}

/// `    Key = 1;` at the top of the dictionary; what is nested stands further in.
fn switch(text: &str, key: &str) -> Option<bool> {
    let value = text.lines().find_map(|line| {
        let (name, value) = line.strip_prefix("    ")?.split_once(" = ")?;
        (name == key).then_some(value)
    })?;
    match value.trim().strip_suffix(';')? {
        "0" | "false" => Some(false),
        "1" | "true" => Some(true),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::probe::parse::mutated::mutated;

    const AUTOMATIC: &str = "{\n    AutomaticDownload = 1;\n    AutomaticallyInstallMacOSUpdates = 1;\n\
        \u{20}   CriticalUpdateInstall = 0;\n    LastUpdatesAvailable = 2;\n    RecommendedUpdates =     (\n        {\n\
        \u{20}           CriticalUpdateInstall = 1;\n        }\n    );\n}\n";

    #[test]
    fn file_vault_has_its_sentences() {
        assert_eq!(file_vault("FileVault is On.\n"), Some(FileVault::On));
        assert_eq!(file_vault("FileVault is Off.\n"), Some(FileVault::Off));
        let changing = "FileVault is Off.\nDecryption in progress: Percent completed = 61\n";
        assert_eq!(file_vault(changing), Some(FileVault::Changing));
        for text in ["", "Error: fdesetup must be run as root\n", "FileVault is pending"] {
            assert_eq!(file_vault(text), None, "{text}");
        }
    }

    #[test]
    fn updates_that_install_themselves_are_told() {
        let expected =
            Updates { install_macos: Some(true), install_critical: Some(false), download: Some(true) };
        assert_eq!(updates(AUTOMATIC), expected);
    }

    #[test]
    fn a_key_that_is_not_there_is_not_known() {
        for text in [
            "",
            "{\n}\n",
            "The domain/default pair of (/Library/Preferences/com.apple.SoftwareUpdate) does not exist\n",
            "{\n    AutomaticallyInstallMacOSUpdates = 2;\n    AutomaticDownload = 1\n}\n",
        ] {
            assert_eq!(updates(text), Updates::default(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_answer_panics(text in prop_oneof![any::<String>(), mutated(AUTOMATIC)]) {
            let _ = (file_vault(&text), updates(&text));
        }
    }
}
