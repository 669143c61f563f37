//! Pure parsers of what files and tools of the system say. None panics on any input, none takes a missing value for
//! zero, and all ignore what they do not know.

pub mod linux;
