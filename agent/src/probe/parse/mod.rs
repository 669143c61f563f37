//! Pure parsers of what files and tools of the system say. None panics on any input, none takes a missing value for
//! zero or a word it does not know for "no", and all ignore what they do not know.

pub mod linux;
pub mod mac;

#[cfg(test)]
mod mutated;
