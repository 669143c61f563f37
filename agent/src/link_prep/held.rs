//! Ports that a person has reset by hand: they are left as they are, by an agent that runs and by the next one, whatever its policy,
//! until a person has them prepared.
//!
//! A port is known again by the bus it is on: which interface belongs to which bus may change with a restart.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::run::Error;
use crate::{durable, probe::observation::Thunderbolt};

/// More than any Mac has; beyond it the one that was reset longest ago is forgotten, whose hardware is gone.
const MOST_HELD: usize = 32;

/// The ports that are left as they are, the one that was reset last at the end. On disk before anything rests on it.
#[derive(Debug)]
pub struct Held {
    path: PathBuf,
    ports: Vec<Port>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Port {
    interface: String,
    /// Of its bus, where that could be seen.
    domain_uuid: Option<String>,
}

impl Port {
    fn of(interface: &str, thunderbolt: Option<&Thunderbolt>) -> Self {
        let mut ports = thunderbolt.into_iter().flat_map(|thunderbolt| &thunderbolt.ports);
        let port = ports.find(|port| port.interface.as_deref() == Some(interface));
        Self { interface: interface.to_owned(), domain_uuid: port.and_then(|port| port.domain_uuid.clone()) }
    }

    fn is_same(&self, other: &Self) -> bool {
        match (&self.domain_uuid, &other.domain_uuid) {
            (Some(one), Some(other)) => one == other,
            _ => self.interface == other.interface,
        }
    }
}

impl Held {
    /// Reads the file, if there is one.
    ///
    /// # Errors
    /// When there is one that cannot be read: a port it names would be changed against somebody's will.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let found = match fs::read(path) {
            Ok(text) => serde_json::from_slice(&text).map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        };
        let ports = found.map_err(|source| Error::Journal { path: path.to_owned(), verb: "read", source })?;
        Ok(Self { path: path.to_owned(), ports })
    }

    /// Whether this port is left as it is.
    #[must_use]
    pub fn holds(&self, interface: &str, thunderbolt: Option<&Thunderbolt>) -> bool {
        let asked = Port::of(interface, thunderbolt);
        self.ports.iter().any(|port| port.is_same(&asked))
    }

    /// Leaves these ports as they are from now on. Returns those that were not left so before.
    ///
    /// # Errors
    /// When that cannot be kept; then nothing has changed.
    pub fn hold<'a>(
        &mut self,
        interfaces: impl IntoIterator<Item = &'a str>,
        thunderbolt: Option<&Thunderbolt>,
    ) -> Result<Vec<String>, Error> {
        let mut ports = self.ports.clone();
        let mut new = Vec::new();
        for interface in interfaces {
            let port = Port::of(interface, thunderbolt);
            let before = ports.len();
            ports.retain(|other| !other.is_same(&port));
            if ports.len() == before {
                new.push(port.interface.clone());
            }
            ports.push(port);
        }
        ports.drain(..ports.len().saturating_sub(MOST_HELD));
        self.keep(ports)?;
        Ok(new)
    }

    /// Leaves them as they are no longer. Returns those that were.
    ///
    /// # Errors
    /// When that cannot be kept; then nothing has changed.
    pub fn release<'a>(
        &mut self,
        interfaces: impl IntoIterator<Item = &'a str>,
        thunderbolt: Option<&Thunderbolt>,
    ) -> Result<Vec<String>, Error> {
        let mut ports = self.ports.clone();
        let mut released = Vec::new();
        for interface in interfaces {
            let asked = Port::of(interface, thunderbolt);
            let before = ports.len();
            ports.retain(|port| !port.is_same(&asked));
            if ports.len() < before {
                released.push(asked.interface);
            }
        }
        self.keep(ports)?;
        Ok(released)
    }

    fn keep(&mut self, ports: Vec<Port>) -> Result<(), Error> {
        if ports == self.ports {
            return Ok(());
        }
        let text = serde_json::to_vec(&ports).map_err(io::Error::other);
        text.and_then(|text| durable::replace_file(&self.path, &text)).map_err(|source| Error::Journal {
            path: self.path.clone(),
            verb: "written",
            source,
        })?;
        self.ports = ports;
        Ok(())
    }
}

/// Where they are kept.
#[must_use]
pub fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("link-held.json")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::observation::ThunderboltPort;

    fn buses(ports: &[(&str, &str)]) -> Thunderbolt {
        let port = |&(interface, uuid): &(&str, &str)| ThunderboltPort {
            interface: Some(interface.to_owned()),
            domain_uuid: Some(uuid.to_owned()),
            ..ThunderboltPort::default()
        };
        Thunderbolt { ports: ports.iter().map(port).collect(), ..Thunderbolt::default() }
    }

    #[test]
    fn a_port_is_left_alone_by_whoever_asks_later_until_it_is_released() {
        let dir = tempfile::tempdir().unwrap();
        let file = path(dir.path());
        let before = buses(&[("en3", "A"), ("en6", "B")]);
        let mut held = Held::open(&file).unwrap();
        assert_eq!(held.hold(["en3"], Some(&before)).unwrap(), ["en3"]);
        assert_eq!(held.hold(["en3"], Some(&before)).unwrap(), [""; 0], "it is already");
        // After a restart the interfaces have changed places.
        let after = buses(&[("en6", "A"), ("en3", "B")]);
        let mut held = Held::open(&file).unwrap();
        assert!(held.holds("en6", Some(&after)) && !held.holds("en3", Some(&after)));
        assert!(held.holds("en3", None), "with nothing else to go by, the interface counts");
        assert_eq!(held.release(["en3"], Some(&after)).unwrap(), [""; 0]);
        assert_eq!(held.release(["en3", "en6"], Some(&after)).unwrap(), ["en6"]);
        assert!(!Held::open(&file).unwrap().holds("en6", Some(&after)));
    }

    #[test]
    fn however_many_there_are_the_newest_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut held = Held::open(&path(dir.path())).unwrap();
        for n in 0..MOST_HELD + 2 {
            held.hold([format!("en{n}").as_str()], None).unwrap();
        }
        held.hold(["en2"], None).unwrap();
        assert_eq!(held.ports.len(), MOST_HELD);
        assert!(!held.holds("en1", None) && held.holds("en2", None));
        assert_eq!(held.ports.last().unwrap().interface, "en2");
    }

    #[test]
    fn what_cannot_be_read_or_written_is_told_and_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = path(dir.path());
        fs::write(&file, "[{").unwrap();
        let error = Held::open(&file).unwrap_err();
        assert!(error.to_string().contains("link-held.json cannot be read"), "{error}");
        let mut held = Held::open(&dir.path().join("no/such/dir/link-held.json")).unwrap();
        let error = held.hold(["en3"], None).unwrap_err();
        assert!(error.to_string().contains("cannot be written"), "{error}");
        assert!(!held.holds("en3", None));
    }
}
