//! Where a model lies: a directory, or a name of the model hub and its place in the hub's cache.
//!
//! Promises: the same answer that a worker of this agent comes to (`loader.py`, `huggingface_hub`), from the same
//! environment; a name never leads out of the cache.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use crate::worker::account::Account;

/// Longest revision that is taken: the hub's are 40 digits.
const MAX_REVISION_BYTES: u64 = 128;

/// Endings of the files that a worker reads: weights and their index, configuration, tokenizer and chat template.
const NEEDED: [&str; 5] = ["safetensors", "json", "model", "txt", "jinja"];

/// The largest published models have some 200 files.
const MOST_NEEDED: usize = 4_096;

/// What a name depends on besides itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// Relative paths begin here: the working directory of workers.
    pub base: PathBuf,
    /// `~`.
    pub home: Option<PathBuf>,
    /// `HF_HOME` of workers, where there is one.
    pub hf_home: Option<PathBuf>,
    /// Who workers run as, where that is not who this process runs as.
    pub account: Option<Account>,
}

/// What a name leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A directory named as such.
    Directory(PathBuf),
    /// The newest revision of a hub name in the cache; what is missing there a worker would fetch.
    Cached(PathBuf),
    /// A hub name the cache does not have.
    NotHere,
    /// Neither, in one sentence.
    Nowhere(String),
}

impl Place {
    /// As workers of this process see it that are told `hf_home` (see `worker::process`).
    #[must_use]
    pub fn of_workers(base: PathBuf, hf_home: Option<PathBuf>, account: Option<Account>) -> Self {
        let set = |name| env::var_os(name).filter(|value: &OsString| !value.is_empty()).map(PathBuf::from);
        match &account {
            Some(user) => Self { base, home: Some(user.home.clone()), hf_home, account },
            None => Self { base, home: set("HOME"), hf_home: hf_home.or_else(|| set("HF_HOME")), account },
        }
    }

    /// Why workers cannot read what lies here, where that can be told.
    #[must_use]
    pub fn closed(&self, dir: &Path) -> Option<String> {
        let account = self.account.as_ref()?;
        let needed =
            fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).filter(|path| {
                path.extension().is_some_and(|ending| NEEDED.iter().any(|needed| ending == *needed))
            });
        let at = account
            .closed_at(&dir.join("config.json"))
            .or_else(|| needed.take(MOST_NEEDED).find_map(|path| account.closed_at(&path)))?;
        Some(format!("{} is closed to {}, whom workers run as", at.display(), account.name))
    }

    /// Where `name` leads, in the order a worker looks.
    #[must_use]
    pub fn locate(&self, name: &str) -> Location {
        let path = self.base.join(self.expand(Path::new(name)));
        if path.is_dir() {
            return Location::Directory(path);
        }
        if path.exists() {
            return Location::Nowhere(format!("the model {name} is a file; give the directory it lies in"));
        }
        match hub_parts(name) {
            Some((owner, model)) => self.cached(owner, model).map_or(Location::NotHere, Location::Cached),
            None => Location::Nowhere(format!("there is no model directory {name} on this node")),
        }
    }

    /// The directory of the revision that `main` was when it was fetched.
    fn cached(&self, owner: &str, model: &str) -> Option<PathBuf> {
        let hf_home = match &self.hf_home {
            Some(dir) => self.base.join(self.expand(dir)),
            None => self.home.as_ref()?.join(".cache/huggingface"),
        };
        let repository = hf_home.join("hub").join(format!("models--{owner}--{model}"));
        let main = repository.join("refs/main");
        let size = fs::metadata(&main).ok()?.len();
        let revision = if size <= MAX_REVISION_BYTES { fs::read_to_string(main).ok()? } else { return None };
        let revision = revision.trim();
        let plain = !revision.is_empty() && revision.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let snapshot = repository.join("snapshots").join(revision);
        (plain && snapshot.is_dir()).then_some(snapshot)
    }

    fn expand(&self, path: &Path) -> PathBuf {
        match (path.strip_prefix("~"), &self.home) {
            (Ok(rest), Some(home)) => home.join(rest),
            _ => path.to_owned(),
        }
    }
}

/// `owner/model`, both of the hub's characters.
fn hub_parts(name: &str) -> Option<(&str, &str)> {
    let (owner, model) = name.split_once('/')?;
    let plain = |part: &str| {
        (1..=96).contains(&part.len())
            && !part.starts_with(['.', '-'])
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    };
    (plain(owner) && plain(model)).then_some((owner, model))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(home: &Path) -> PathBuf {
        let repository = home.join(".cache/huggingface/hub/models--org--tiny-4bit");
        fs::create_dir_all(repository.join("snapshots/0abc")).unwrap();
        fs::create_dir_all(repository.join("refs")).unwrap();
        fs::write(repository.join("refs/main"), "0abc").unwrap();
        repository
    }

    #[test]
    fn a_name_leads_where_a_worker_would_find_it() {
        let dir = tempfile::tempdir().unwrap();
        let (home, base) = (dir.path().join("home"), dir.path().join("state"));
        fs::create_dir_all(base.join("near")).unwrap();
        fs::create_dir_all(home.join("models/m")).unwrap();
        fs::write(base.join("file"), "").unwrap();
        let repository = cache(&home);
        let place = Place { base: base.clone(), home: Some(home.clone()), hf_home: None, account: None };
        let cached = Location::Cached(repository.join("snapshots/0abc"));
        assert_eq!(place.locate("near"), Location::Directory(base.join("near")));
        assert_eq!(place.locate("~/models/m"), Location::Directory(home.join("models/m")));
        assert_eq!(place.locate("org/tiny-4bit"), cached);
        assert_eq!(place.locate("org/other"), Location::NotHere);
        let moved = Place { hf_home: Some("~/.cache/huggingface".into()), ..place.clone() };
        assert_eq!(moved.locate("org/tiny-4bit"), cached);
        let elsewhere = Place { hf_home: Some("/nonexistent".into()), ..place.clone() };
        assert_eq!(elsewhere.locate("org/tiny-4bit"), Location::NotHere);
        let nowhere = Location::Nowhere("the model file is a file; give the directory it lies in".into());
        assert_eq!(place.locate("file"), nowhere);
        for name in
            ["/nonexistent", "./a", "a/b/c", "a", "", "..", "../..", "org/..", "-a/b", "~x/y", "a/b\0"]
        {
            let found = place.locate(name);
            // "" and ".." are directories that are there; none of them may be taken for a name of the hub.
            assert!(matches!(found, Location::Nowhere(_) | Location::Directory(_)), "{name:?}: {found:?}");
        }
    }

    #[test]
    fn a_revision_that_leads_out_of_the_cache_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let repository = cache(dir.path());
        let place = Place { home: Some(dir.path().to_owned()), ..Place::default() };
        for bad in ["../..", "", "0abc/..", "absent", &"a".repeat(1_000)] {
            fs::write(repository.join("refs/main"), bad).unwrap();
            assert_eq!(place.locate("org/tiny-4bit"), Location::NotHere, "{bad}");
        }
    }
}
