//! The simulated files.

use std::{io, path::PathBuf};

use nix::errno::Errno;

use super::{
    files::{Content, Entry},
    world::{State, Step, World, crashed},
};
use crate::ledger::Disk;

/// The files of a [`World`].
#[derive(Clone, Debug)]
pub struct SimDisk(World);

impl SimDisk {
    /// The files of a world.
    #[must_use]
    pub fn new(world: &World) -> Self {
        Self(world.clone())
    }
}

impl State {
    fn content(&mut self, path: &str) -> io::Result<&mut Content> {
        match self.names.get(path) {
            Some(Entry::File(index)) => Ok(&mut self.contents[index]),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn content_or_new(&mut self, path: &str) -> io::Result<&mut Content> {
        if self.names.get(path).is_none() {
            self.names.add(path, Entry::File(self.contents.len()))?;
            self.contents.push(Content::default());
        }
        self.content(path)
    }

    fn write(&mut self, path: &str, at: u64, bytes: &[u8], step: Step) -> io::Result<()> {
        let half = self.dice.below(bytes.len() as u64 + 1) as usize;
        let room = usize::try_from(self.free_bytes()).unwrap_or(usize::MAX);
        let injected = self.write_error.take();
        let content = self.content_or_new(path)?;
        let (written, outcome) = match (step, injected) {
            (Step::Part, _) => (half, Err(crashed())),
            (Step::Whole(true), _) => (bytes.len(), Err(crashed())),
            (Step::Whole(false), Some(errno)) => (half, Err(errno.into())),
            (Step::Whole(false), None) if room < bytes.len() => (room, Err(Errno::ENOSPC.into())),
            (Step::Whole(false), None) => (bytes.len(), Ok(())),
        };
        content.write(at, &bytes[..written]);
        outcome
    }

    /// A step that happens or does not.
    fn all_or_nothing(&mut self, change: impl FnOnce(&mut Self) -> io::Result<()>) -> io::Result<()> {
        let then_crash = match self.step()? {
            Step::Whole(then_crash) => then_crash,
            Step::Part if self.dice.below(2) == 0 => return Err(crashed()),
            Step::Part => true,
        };
        change(self)?;
        if then_crash { Err(crashed()) } else { Ok(()) }
    }
}

impl Disk for SimDisk {
    fn list(&mut self, directory: &str) -> io::Result<Vec<String>> {
        let state = self.0.state();
        state.check_alive()?;
        state.names.children(directory)
    }

    fn file_bytes(&mut self, path: &str) -> io::Result<Option<u64>> {
        let mut state = self.0.state();
        state.check_alive()?;
        Ok(state.content(path).ok().map(|content| content.now.len() as u64))
    }

    fn read_at(&mut self, path: &str, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut state = self.0.state();
        state.check_alive()?;
        let content = &state.content(path)?.now;
        let from = content.len().min(usize::try_from(at).unwrap_or(usize::MAX));
        let bytes = buffer.len().min(content.len() - from);
        buffer[..bytes].copy_from_slice(&content[from..from + bytes]);
        Ok(bytes)
    }

    fn write_new(&mut self, path: &str, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.0.state();
        let step = state.step()?;
        state.content_or_new(path)?.truncate(0);
        state.write(path, 0, bytes, step)
    }

    fn write_at(&mut self, path: &str, at: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.0.state();
        let step = state.step()?;
        state.write(path, at, bytes, step)
    }

    fn truncate(&mut self, path: &str, bytes: u64) -> io::Result<()> {
        self.0.state().all_or_nothing(|state| {
            state.content(path)?.truncate(bytes);
            Ok(())
        })
    }

    fn sync_file(&mut self, path: &str) -> io::Result<()> {
        self.0.state().all_or_nothing(|state| {
            state.content(path)?.sync();
            Ok(())
        })
    }

    fn sync_directory(&mut self, directory: &str) -> io::Result<()> {
        self.0.state().all_or_nothing(|state| {
            state.names.sync(directory);
            Ok(())
        })
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.0.state().all_or_nothing(|state| state.names.rename(from, to))
    }

    fn create_directory(&mut self, directory: &str) -> io::Result<()> {
        let mut state = self.0.state();
        state.check_alive()?;
        if state.names.get(directory).is_some() {
            return Ok(());
        }
        state.all_or_nothing(|state| state.names.add(directory, Entry::Directory))
    }

    fn remove_directory(&mut self, directory: &str) -> io::Result<()> {
        let mut state = self.0.state();
        state.check_alive()?;
        let within = state.names.within(directory);
        if within == 0 {
            return Ok(());
        }
        let (at_most, outcome) = match state.step()? {
            Step::Whole(false) => (within, Ok(())),
            Step::Whole(true) => (within, Err(crashed())),
            Step::Part => (state.dice.below(within as u64 + 1) as usize, Err(crashed())),
        };
        state.names.remove(directory, at_most);
        outcome
    }

    fn free_bytes(&mut self) -> io::Result<u64> {
        let state = self.0.state();
        state.check_alive()?;
        Ok(state.free_bytes())
    }

    fn close(&mut self, _directory: &str) {}

    fn display(&self, path: &str) -> PathBuf {
        PathBuf::from("/simulated").join(path)
    }
}
