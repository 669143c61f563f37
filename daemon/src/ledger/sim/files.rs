//! Files and names, now and for certain.

use std::{collections::BTreeMap, io};

use super::world::Dice;

/// What a name stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Entry {
    Directory,
    /// Index of its content.
    File(usize),
}

#[derive(Clone, Debug)]
enum Change {
    Write { at: usize, bytes: Vec<u8> },
    Truncate { bytes: usize },
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::Write { at, bytes } => {
                if content.len() < at + bytes.len() {
                    content.resize(at + bytes.len(), 0);
                }
                content[*at..at + bytes.len()].copy_from_slice(bytes);
            }
            Self::Truncate { bytes } => content.resize(*bytes, 0),
        }
    }

    /// The change as a power cut may have left it.
    fn apply_by_chance(&self, content: &mut Vec<u8>, dice: &mut Dice) {
        match (self, dice.below(4)) {
            (_, 0) => {}
            (Self::Write { at, bytes }, 1) => {
                let keep = dice.below(bytes.len() as u64 + 1) as usize;
                Self::Write { at: *at, bytes: bytes[..keep].to_vec() }.apply(content);
            }
            // The length was written, the data was not.
            (Self::Write { at, bytes }, 2) if at + bytes.len() > content.len() => {
                content.resize(at + bytes.len(), 0);
            }
            _ => self.apply(content),
        }
    }
}

/// A file's bytes.
#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    pub(super) now: Vec<u8>,
    durable: Vec<u8>,
    changes: Vec<Change>,
}

impl Content {
    pub(super) fn write(&mut self, at: u64, bytes: &[u8]) {
        self.change(Change::Write { at: at as usize, bytes: bytes.to_vec() });
    }

    pub(super) fn truncate(&mut self, bytes: u64) {
        self.change(Change::Truncate { bytes: bytes as usize });
    }

    pub(super) fn sync(&mut self) {
        self.durable.clone_from(&self.now);
        self.changes.clear();
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.now);
        self.changes.push(change);
    }

    pub(super) fn lose_power(&mut self, dice: &mut Dice) {
        let mut content = std::mem::take(&mut self.durable);
        for change in self.changes.drain(..) {
            change.apply_by_chance(&mut content, dice);
        }
        self.durable.clone_from(&content);
        self.now = content;
    }
}

#[derive(Clone, Debug)]
enum NameChange {
    Add(String, Entry),
    Remove(String),
    Rename(String, String),
}

impl NameChange {
    fn touches(&self, directory: &str) -> bool {
        match self {
            Self::Add(path, _) | Self::Remove(path) => parent(path) == directory,
            Self::Rename(from, to) => parent(from) == directory || parent(to) == directory,
        }
    }

    fn apply(&self, names: &mut BTreeMap<String, Entry>) {
        match self {
            Self::Add(path, entry) => {
                names.insert(path.clone(), *entry);
            }
            Self::Remove(path) => {
                names.remove(path);
            }
            Self::Rename(from, to) => {
                let moved: Vec<_> = names.keys().filter(|name| is_within(name, from)).cloned().collect();
                for name in moved {
                    if let Some(entry) = names.remove(&name) {
                        names.insert(renamed(&name, from, to), entry);
                    }
                }
            }
        }
    }

    /// A directory was renamed for certain: a change inside it that is not certain yet happens at its new place.
    fn follow(&mut self, from: &str, to: &str) {
        match self {
            Self::Add(path, _) | Self::Remove(path) => *path = renamed(path, from, to),
            Self::Rename(a, b) => (*a, *b) = (renamed(a, from, to), renamed(b, from, to)),
        }
    }
}

/// Names of files and directories.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    now: BTreeMap<String, Entry>,
    durable: BTreeMap<String, Entry>,
    changes: Vec<NameChange>,
}

impl Names {
    pub(super) fn get(&self, path: &str) -> Option<Entry> {
        if path.is_empty() { Some(Entry::Directory) } else { self.now.get(path).copied() }
    }

    pub(super) fn children(&self, directory: &str) -> io::Result<Vec<String>> {
        if self.get(directory) != Some(Entry::Directory) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let names = self.now.keys().filter(|path| parent(path) == directory);
        Ok(names.filter_map(|path| path.rsplit('/').next()).map(str::to_owned).collect())
    }

    pub(super) fn add(&mut self, path: &str, entry: Entry) -> io::Result<()> {
        if self.get(parent(path)) != Some(Entry::Directory) {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.change(NameChange::Add(path.to_owned(), entry));
        Ok(())
    }

    pub(super) fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let entry = self.get(from).ok_or(io::ErrorKind::NotFound)?;
        if self.get(parent(to)) != Some(Entry::Directory) {
            return Err(io::ErrorKind::NotFound.into());
        }
        if entry == Entry::Directory && self.get(to).is_some() {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        self.change(NameChange::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    /// Removes a path and what is in it, children first, at most so many.
    pub(super) fn remove(&mut self, path: &str, at_most: usize) {
        let mut within: Vec<_> = self.now.keys().filter(|name| is_within(name, path)).cloned().collect();
        within.sort_by_key(|name| std::cmp::Reverse(name.matches('/').count()));
        within.into_iter().take(at_most).for_each(|name| self.change(NameChange::Remove(name)));
    }

    pub(super) fn within(&self, path: &str) -> usize {
        self.now.keys().filter(|name| is_within(name, path)).count()
    }

    pub(super) fn sync(&mut self, directory: &str) {
        let mut index = 0;
        while index < self.changes.len() {
            if !self.changes[index].touches(directory) {
                index += 1;
                continue;
            }
            let change = self.changes.remove(index);
            change.apply(&mut self.durable);
            if let NameChange::Rename(from, to) = change {
                self.changes[..index].iter_mut().for_each(|earlier| earlier.follow(&from, &to));
            }
        }
    }

    pub(super) fn lose_power(&mut self, dice: &mut Dice) {
        let kept = dice.below(self.changes.len() as u64 + 1) as usize;
        for change in self.changes.drain(..).take(kept) {
            change.apply(&mut self.durable);
        }
        // What is in a directory that never was certain is gone with it.
        let known = self.durable.clone();
        self.durable.retain(|path, _| {
            std::iter::successors(Some(parent(path)), |path| (!path.is_empty()).then(|| parent(path)))
                .all(|path| path.is_empty() || known.get(path) == Some(&Entry::Directory))
        });
        self.now.clone_from(&self.durable);
    }

    pub(super) fn survive(&mut self) {
        self.durable.clone_from(&self.now);
        self.changes.clear();
    }

    fn change(&mut self, change: NameChange) {
        change.apply(&mut self.now);
        self.changes.push(change);
    }
}

/// The directory a path is in; that of the topmost is empty.
pub(super) fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(directory, _)| directory)
}

fn is_within(name: &str, path: &str) -> bool {
    name.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn renamed(name: &str, from: &str, to: &str) -> String {
    if is_within(name, from) { format!("{to}{}", &name[from.len()..]) } else { name.to_owned() }
}
