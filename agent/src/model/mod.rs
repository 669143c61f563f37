//! What a model directory says about its model, without its weights.
//!
//! The promise: only `config.json`, the index and the headers of the weight files are read, whatever the weights weigh;
//! every size is bounded; whatever the bytes are, the answer is a report or one sentence that says what is wrong; and what
//! a worker could not load for want of a file is not reported as a model.
//!
//! * [`hub`] says where a name lies: a directory, or the hub's cache;
//! * [`header`] reads the header of one weight file;
//! * [`inspect`](mod@inspect) puts the report together, [`fold`] makes it small;
//! * [`text`] is the report for a person.

pub mod fold;
pub mod header;
pub mod hub;
pub mod inspect;
pub mod text;

pub use hub::Place;
pub use inspect::{Found, Problem, find, inspect};
