//! Everything `clusterctl` prints goes through here.
//!
//! Data goes to stdout, everything else to stderr. [`views`] are the one truth; [`human`] and [`json`] print them.
//! A closed pipe ends a command quietly.

use std::io::{self, IsTerminal, Write};

use jiff::{Timestamp, tz::TimeZone};
use serde::Serialize;

use crate::error::{Error, Result};

pub mod human;
pub mod json;
pub mod live;
pub mod screen;
pub mod style;
pub mod table;
pub mod text;
pub mod units;
pub mod views;

pub use screen::Screen;
pub use style::{ColorChoice, Style};

/// `--output`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// Sentences and tables.
    #[default]
    Human,
    /// One JSON value, or JSON Lines where output streams.
    Json,
}

/// Narrower than this no table is readable; a terminal that says so is not believed.
const MIN_TERMINAL_COLUMNS: u16 = 20;

/// Whether the terminal cannot move its cursor, by its own account.
fn terminal_is_dumb() -> bool {
    std::env::var("TERM").is_ok_and(|term| term == "dumb")
}

/// Where and how to print.
#[derive(Debug, Clone)]
pub struct Output {
    format: Format,
    stdout_color: bool,
    stderr_color: bool,
    stdout_is_terminal: bool,
    stderr_is_terminal: bool,
    tz: TimeZone,
}

impl Output {
    /// For this process' stdout and stderr.
    pub fn new(format: Format, color: ColorChoice) -> Self {
        let env = |name: &str| std::env::var(name).ok();
        Output {
            format,
            stdout_color: style::use_color(color, &io::stdout(), env),
            stderr_color: style::use_color(color, &io::stderr(), env),
            stdout_is_terminal: io::stdout().is_terminal(),
            stderr_is_terminal: io::stderr().is_terminal(),
            tz: TimeZone::system(),
        }
    }

    /// Whether programs read the output.
    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Whether stdout is a terminal a person looks at, in human form: the place for things that move.
    pub fn is_live(&self) -> bool {
        self.stdout_is_terminal && !self.is_json() && !terminal_is_dumb()
    }

    /// Whether a progress line on stderr would be seen.
    pub fn shows_progress(&self) -> bool {
        self.stderr_is_terminal && !self.is_json() && !terminal_is_dumb()
    }

    /// Whether a question can be asked: a person is at both ends, and reads the human form.
    pub fn can_ask(&self) -> bool {
        self.stderr_is_terminal && io::stdin().is_terminal() && !self.is_json()
    }

    /// Stdout as a renderer sees it, at this moment and size.
    pub fn screen(&self) -> Screen {
        self.screen_of(self.stdout_is_terminal, self.stdout_color)
    }

    /// Stderr as a renderer sees it.
    pub fn stderr_screen(&self) -> Screen {
        self.screen_of(self.stderr_is_terminal, self.stderr_color)
    }

    fn screen_of(&self, is_terminal: bool, color: bool) -> Screen {
        let size = if is_terminal { crossterm::terminal::size().ok() } else { None };
        let size = size.filter(|(columns, _)| *columns >= MIN_TERMINAL_COLUMNS);
        Screen {
            // A terminal that does not tell its size is taken for the classic one.
            width: is_terminal.then(|| size.map_or(80, |(columns, _)| usize::from(columns))),
            height: is_terminal.then(|| size.map_or(24, |(_, rows)| usize::from(rows))),
            color,
            now: Timestamp::now(),
            tz: self.tz.clone(),
        }
    }

    /// The one answer of a command: the view as JSON, or what `human` makes of it.
    pub fn value<T: Serialize>(&self, view: &T, human: impl FnOnce(&T, &Screen) -> String) -> Result<()> {
        match self.format {
            Format::Json => self.raw(json::value(view).as_bytes()),
            Format::Human => self.raw(human(view, &self.screen()).as_bytes()),
        }
    }

    /// One of many: the view as a line of JSON, or the lines `human` makes of it.
    pub fn item<T: Serialize>(&self, view: &T, human: impl FnOnce(&T, &Screen) -> Vec<String>) -> Result<()> {
        match self.format {
            Format::Json => self.raw(json::line(view).as_bytes()),
            Format::Human => self.raw(human::text(&human(view, &self.screen())).as_bytes()),
        }
    }

    /// Bytes to stdout, at once.
    pub fn raw(&self, bytes: &[u8]) -> Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(Error::write)
    }

    /// A sentence beside the data, on stderr. Programs do not get it.
    pub fn note(&self, text: &str) {
        if !self.is_json() {
            let lines = self.stderr_screen().sentence("", text, Style::Plain);
            // Nobody is left to tell that stderr is closed.
            let _ = io::stderr().lock().write_all(human::text(&lines).as_bytes());
        }
    }

    /// How a command ended that did not do what was asked.
    pub fn error(&self, error: &Error) {
        let text = if self.is_json() {
            json::line(&error.view())
        } else {
            let screen = self.stderr_screen();
            let mut lines = screen.sentence("error: ", &error.to_string(), Style::Bad);
            if let Some(tried) = error.tried() {
                lines.extend(screen.sentence("tried: ", &tried, Style::Plain));
            }
            if let Some(hint) = error.hint() {
                lines.extend(screen.sentence("hint:  ", hint, Style::Plain));
            }
            human::text(&lines)
        };
        let _ = io::stderr().lock().write_all(text.as_bytes());
    }
}
