//! The real binary against a controller that the test plays, and workers that misbehave when told to.

mod lifecycle;
mod link_tests;
mod looks;
mod models;
mod reconnect;
mod restarts;
mod support;
mod workers;
