//! What the runtime consists of.

use crate::util;

/// The requirements file, as pip reads it.
pub const TEXT: &str = include_str!("requirements.txt");

/// Names this set of requirements: a runtime made from another set is made again.
#[must_use]
pub fn hash() -> String {
    format!("{:016x}", util::fnv1a_64(&[TEXT.as_bytes()]))
}

/// The pinned version of `package`.
#[must_use]
pub fn version(package: &str) -> Option<&'static str> {
    pins().find_map(|(name, version)| (name == package).then_some(version))
}

/// How many packages a machine of this kind installs, for progress.
#[must_use]
pub fn package_count() -> usize {
    let other = if cfg!(target_os = "macos") { "linux" } else { "darwin" };
    TEXT.lines().filter(|line| line.contains("==") && !line.contains(&format!("== \"{other}\""))).count()
}

/// Name (without extras) and version of each line.
fn pins() -> impl Iterator<Item = (&'static str, &'static str)> {
    TEXT.lines().filter_map(|line| {
        let (name, rest) = line.split_once("==")?;
        let version = rest.split(';').next().unwrap_or(rest).trim();
        Some((name.split('[').next().unwrap_or(name).trim(), version))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_package_is_pinned() {
        for line in TEXT.lines().filter(|line| !line.starts_with('#')) {
            assert!(line.contains("=="), "{line}");
        }
        assert_eq!(version("mlx"), Some("0.32.4"));
        assert_eq!(version("mlx-lm"), Some("0.32.2"));
        assert!(package_count() > 30);
    }
}
