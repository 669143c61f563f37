//! Colour by meaning, and when to use it.

use std::io::IsTerminal;

/// What a piece of text means; the colour follows from it. Nothing is told by colour alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Style {
    /// Ordinary text.
    #[default]
    Plain,
    /// Headings and names one looks for.
    Strong,
    /// What matters less: headers, units, paths.
    Dim,
    /// As it should be.
    Good,
    /// Needs an eye.
    Warn,
    /// Wrong.
    Bad,
}

impl Style {
    /// The SGR parameters: the 16 colours every terminal has, in the person's own palette.
    fn sgr(self) -> &'static str {
        match self {
            Style::Plain => "",
            Style::Strong => "1",
            Style::Dim => "2",
            Style::Good => "32",
            Style::Warn => "33",
            Style::Bad => "31",
        }
    }

    /// `text` in this style, if `color`.
    pub fn paint(self, text: &str, color: bool) -> String {
        if !color || self == Style::Plain || text.is_empty() {
            return text.to_owned();
        }
        format!("\x1b[{}m{text}\x1b[0m", self.sgr())
    }
}

/// `--color`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum ColorChoice {
    /// On terminals, unless NO_COLOR is set.
    #[default]
    Auto,
    /// Always, pipes included.
    Always,
    /// Never.
    Never,
}

/// Whether to colour a stream. The flag outranks `NO_COLOR` (no-color.org), which outranks `CLICOLOR_FORCE`
/// (bixense.com/clicolors), which outranks what the stream is.
pub fn use_color(
    choice: ColorChoice,
    stream: &impl IsTerminal,
    env: impl Fn(&str) -> Option<String>,
) -> bool {
    let set = |name: &str| env(name).is_some_and(|value| !value.is_empty());
    match choice {
        ColorChoice::Always => true,
        ColorChoice::Never => false,
        ColorChoice::Auto if set("NO_COLOR") => false,
        ColorChoice::Auto if env("CLICOLOR_FORCE").is_some_and(|v| !v.is_empty() && v != "0") => true,
        ColorChoice::Auto => stream.is_terminal() && env("TERM").is_none_or(|term| term != "dumb"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_outranks_the_environment() {
        let file = tempfile::tempfile().unwrap();
        let env = |pairs: &'static [(&'static str, &'static str)]| {
            move |name: &str| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned())
        };
        assert!(!use_color(ColorChoice::Auto, &file, env(&[])));
        assert!(use_color(ColorChoice::Auto, &file, env(&[("CLICOLOR_FORCE", "1")])));
        assert!(!use_color(ColorChoice::Auto, &file, env(&[("CLICOLOR_FORCE", "0")])));
        assert!(!use_color(ColorChoice::Auto, &file, env(&[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")])));
        assert!(use_color(ColorChoice::Always, &file, env(&[("NO_COLOR", "1")])));
        assert!(!use_color(ColorChoice::Never, &file, env(&[("CLICOLOR_FORCE", "1")])));
    }

    #[test]
    fn plain_text_carries_no_escapes() {
        assert_eq!(Style::Good.paint("ready", false), "ready");
        assert_eq!(Style::Good.paint("ready", true), "\x1b[32mready\x1b[0m");
        assert_eq!(Style::Plain.paint("ready", true), "ready");
    }
}
