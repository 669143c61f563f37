//! The probe of a Mac, as far as it runs on any system: all judgement is here, and is tested here.
//!
//! * [`tools`] runs the tools that came with macOS;
//! * [`survey`] joins what they say of Thunderbolt and RDMA.

pub mod survey;
pub mod tools;
